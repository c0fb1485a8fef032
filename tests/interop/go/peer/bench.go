package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/protobuf/types/dynamicpb"
)

// cell is one measurement, a line of stdin: how large a message, how many callers at a time, and for how long.
type cell struct {
	Bytes   int     `json:"bytes"`
	Callers int     `json:"callers"`
	Seconds float64 `json:"seconds"`
}

// samples are what it brought, a line of stdout, in nanoseconds.
type samples struct {
	Calls     int     `json:"calls"`
	P50       float64 `json:"p50_ns"`
	P90       float64 `json:"p90_ns"`
	P99       float64 `json:"p99_ns"`
	Mean      float64 `json:"mean_ns"`
	PerSecond float64 `json:"per_s"`
}

// same makes one call and checks the answer, outside the measured time.
func (p peer) same(data []byte) (time.Duration, error) {
	method := service.Methods().ByName("Same")
	request, response := message(method.Input(), fields{"data": data}), dynamicpb.NewMessage(method.Output())
	begin := time.Now()
	err := p.conn.Invoke(context.Background(), fmt.Sprintf("/%s/Same", service.FullName()), request, response)
	took := time.Since(begin)
	if err == nil && !bytes.Equal(get(response, "data").Bytes(), data) {
		err = fmt.Errorf("another answer than the question")
	}
	return took, err
}

// measure runs one cell.
func (p peer) measure(c cell) (samples, error) {
	data := bytes.Repeat([]byte("measured"), c.Bytes/8)
	each := make([][]time.Duration, c.Callers)
	failed := make([]error, c.Callers)
	var callers sync.WaitGroup
	begin := time.Now()
	end := begin.Add(time.Duration(c.Seconds * float64(time.Second)))
	for n := range each {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for len(each[n]) == 0 || time.Now().Before(end) {
				took, err := p.same(data)
				if err != nil {
					failed[n] = err
					return
				}
				each[n] = append(each[n], took)
			}
		}()
	}
	callers.Wait()
	elapsed := time.Since(begin)
	var all []time.Duration
	for n := range each {
		if failed[n] != nil {
			return samples{}, failed[n]
		}
		all = append(all, each[n]...)
	}
	sort.Slice(all, func(a, b int) bool { return all[a] < all[b] })
	var total time.Duration
	for _, took := range all {
		total += took
	}
	at := func(share float64) float64 { return float64(all[int(share*float64(len(all)-1))]) }
	return samples{
		len(all), at(0.5), at(0.9), at(0.99), float64(total) / float64(len(all)), float64(len(all)) / elapsed.Seconds(),
	}, nil
}

// runBench is `peer bench`: a cell per line of stdin, until its end.
func runBench(arguments []string) error {
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	autoMTLS := flags.Bool("automtls", false, "AutoMTLS")
	flags.Parse(arguments)
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: handshake(), Plugins: plugin.PluginSet{"peer": dispenser{}}, AutoMTLS: *autoMTLS, StartTimeout: startTimeout,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC}, Cmd: exec.Command(flags.Arg(0), flags.Args()[1:]...),
		Logger: hclog.NewNullLogger(),
	})
	defer client.Kill()
	got, err := dispense(client)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var c cell
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return err
		}
		found, err := got.measure(c)
		if err != nil {
			return err
		}
		printJSON(found)
	}
	return lines.Err()
}
