// A yamux peer, with hashicorp/yamux as it is, on a connected socket that it inherits.
//
//	yamux client|server DESCRIPTOR
//
// It does what it reads, one word and its numbers a line, and prints one JSON object for each line:
//
//	echo             from now on, whatever comes on a stream of the peer's goes back on it, until the peer's end
//	load N MAX SEED  opens N streams at once, sends up to MAX bytes on each, ends its direction, and compares what comes back
//	hold N           opens N streams at once and leaves them open
//	ping N           pings N times, one after another
//	goaway           takes no more streams
//	close            closes the session
//	wait             until the session is closed by the peer
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

type answer map[string]any

// echo returns what comes on each stream. Some are closed as soon as the peer has ended its direction, as HTTP/2 would.
func echo(session *yamux.Session) {
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		go func() {
			defer stream.Close()
			io.Copy(stream, stream)
		}()
	}
}

// exchange sends a payload, ends its direction, and reads until the other one ends. It returns the payload's size, -1 for a wrong answer.
func exchange(stream *yamux.Stream, random *rand.Rand, max int) (int, error) {
	payload := make([]byte, random.Intn(max+1))
	random.Read(payload)
	sent := make(chan error, 1)
	go func() {
		for rest := payload; len(rest) > 0; {
			part := rest[:1+random.Intn(len(rest))]
			if _, err := stream.Write(part); err != nil {
				sent <- err
				return
			}
			rest = rest[len(part):]
		}
		sent <- stream.Close()
	}()
	back, err := io.ReadAll(stream)
	if err != nil {
		return 0, err
	}
	if err := <-sent; err != nil {
		return 0, err
	}
	if !bytes.Equal(back, payload) {
		return -1, nil
	}
	return len(payload), nil
}

func load(session *yamux.Session, count, max, seed int) answer {
	var wrong, total atomic.Int64
	var failed atomic.Value
	var all sync.WaitGroup
	for n := 0; n < count; n++ {
		all.Add(1)
		go func() {
			defer all.Done()
			stream, err := session.OpenStream()
			size := 0
			if err == nil {
				size, err = exchange(stream, rand.New(rand.NewSource(int64(seed+n))), max)
			}
			if err != nil {
				failed.Store(err.Error())
			} else if size < 0 {
				wrong.Add(1)
			} else {
				total.Add(int64(size))
			}
		}()
	}
	all.Wait()
	return answer{"bytes": total.Load(), "wrong": wrong.Load(), "failed": failed.Load()}
}

func hold(session *yamux.Session, count int) answer {
	for n := 0; n < count; n++ {
		if _, err := session.OpenStream(); err != nil {
			return answer{"held": n, "failed": err.Error()}
		}
	}
	return answer{"held": count}
}

func ping(session *yamux.Session, count int) answer {
	var longest time.Duration
	for n := 0; n < count; n++ {
		took, err := session.Ping()
		if err != nil {
			return answer{"pinged": n, "failed": err.Error()}
		}
		longest = max(longest, took)
	}
	return answer{"pinged": count, "longest_us": longest.Microseconds()}
}

func obey(session *yamux.Session, word string, numbers []int) answer {
	switch word {
	case "echo":
		go echo(session)
		return answer{"echoing": true}
	case "load":
		return load(session, numbers[0], numbers[1], numbers[2])
	case "hold":
		return hold(session, numbers[0])
	case "ping":
		return ping(session, numbers[0])
	case "goaway":
		return answer{"went": session.GoAway() == nil}
	case "close":
		return answer{"closed": session.Close() == nil}
	case "wait":
		<-session.CloseChan()
		return answer{"over": session.IsClosed(), "streams": session.NumStreams()}
	}
	return answer{"unknown": word}
}

func run() error {
	descriptor, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(descriptor), "peer")
	conn, err := net.FileConn(file)
	if err != nil {
		return err
	}
	file.Close()
	make := yamux.Server
	if os.Args[1] == "client" {
		make = yamux.Client
	}
	session, err := make(conn, nil)
	if err != nil {
		return err
	}
	lines, printed := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var word string
		numbers := []int{0, 0, 0}
		fmt.Sscan(lines.Text(), &word, &numbers[0], &numbers[1], &numbers[2])
		if err := printed.Encode(obey(session, word, numbers)); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "yamux:", err)
		os.Exit(1)
	}
}
