package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/dynamicpb"
)

const (
	// A plugin starts Python, on a machine that may be busy.
	startTimeout = 60 * time.Second
	// What was printed has been sent already when Print answers; the reader's goroutine has to run.
	stdioTimeout = 10 * time.Second
	largeBytes   = 64 << 20
	// A state in /proc/net/unix.
	connected = "03"
)

// dispensed is what the host's half of the plugin gives: the connection and the broker.
type dispensed struct {
	peer
	broker *plugin.GRPCBroker
}

type dispenser struct {
	plugin.NetRPCUnsupportedPlugin
}

func (dispenser) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return fmt.Errorf("this is a host")
}

func (dispenser) GRPCClient(_ context.Context, broker *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return dispensed{peer{conn}, broker}, nil
}

// lines is a writer that can be waited on.
type lines struct {
	mutex sync.Mutex
	held  bytes.Buffer
	wrote chan struct{}
}

func newLines() *lines { return &lines{wrote: make(chan struct{}, 1)} }

func (l *lines) Write(data []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	select {
	case l.wrote <- struct{}{}:
	default:
	}
	return l.held.Write(data)
}

// until is all that was written, once it has a whole line.
func (l *lines) until() string {
	late := time.After(stdioTimeout)
	for {
		l.mutex.Lock()
		text := l.held.String()
		l.mutex.Unlock()
		if strings.Contains(text, "\n") {
			return text
		}
		select {
		case <-l.wrote:
		case <-late:
			return text
		}
	}
}

// run is one plugin process and what is asked of it.
type run struct {
	dispensed
	nonce          string
	client         *plugin.Client
	stdout, stderr *lines
	config         *plugin.ClientConfig
}

func fact(found *dynamicpb.Message) map[string]any {
	return map[string]any{
		"pid": get(found, "pid").Int(), "digest": get(found, "digest").String(),
		"index": get(found, "index").Uint(), "version": get(found, "version").Uint(),
	}
}

func facts(found []*dynamicpb.Message, err error) (any, error) {
	made := []map[string]any{}
	for _, one := range found {
		made = append(made, fact(one))
	}
	return made, err
}

func single(found *dynamicpb.Message, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return fact(found), nil
}

// steps are what -do may name.
var steps = map[string]func(*run) (any, error){
	"unary": func(r *run) (any, error) { return single(r.one("Unary", fields{"nonce": r.nonce})) },
	"server_stream": func(r *run) (any, error) {
		return facts(r.call("ServerStream", fields{"nonce": r.nonce, "count": uint32(5)}))
	},
	"client_stream": func(r *run) (any, error) { return facts(r.call("ClientStream", r.several()...)) },
	"bidi_stream":   func(r *run) (any, error) { return facts(r.alternate("BidiStream", r.several()...)) },
	"fail":          func(r *run) (any, error) { return single(r.one("Fail", fields{"nonce": r.nonce})) },
	"crash":         (*run).crash,
	"large":         (*run).large,
	"stdio":         (*run).stdio,
	"dial_back":     (*run).dialBack,
	"offer":         (*run).offer,
	"sockets":       (*run).sockets,
	"reattach":      (*run).reattach,
	"reflection":    (*run).reflection,
	"ping": func(r *run) (any, error) {
		protocol, err := r.client.Client()
		if err != nil {
			return nil, err
		}
		return "pinged", protocol.Ping()
	},
}

func (r *run) several() []fields {
	var made []fields
	for n := 0; n < 3; n++ {
		made = append(made, fields{"nonce": fmt.Sprintf("%s%d", r.nonce, n)})
	}
	return made
}

// large sends 64 MiB and gets as many back.
func (r *run) large() (any, error) {
	data := bytes.Repeat([]byte(r.nonce+"."), largeBytes/(len(r.nonce)+1)+1)[:largeBytes]
	found, err := r.one("Large", fields{"nonce": r.nonce, "data": data})
	if err != nil {
		return nil, err
	}
	got := get(found, "data").Bytes()
	sum := sha256.Sum256(got)
	return map[string]any{
		"bytes": len(got), "turned": bytes.Equal(got, turned(data)), "sha256": hex.EncodeToString(sum[:]), "digest": get(found, "nonce").String(),
	}, nil
}

// stdio has the plugin print, and waits for what go-plugin's stdio service brings.
func (r *run) stdio() (any, error) {
	for _, toStderr := range []bool{false, true} {
		if _, err := r.one("Print", fields{"nonce": r.nonce, "to_stderr": toStderr}); err != nil {
			return nil, err
		}
	}
	return map[string]any{"stdout": r.stdout.until(), "stderr": r.stderr.until()}, nil
}

// dialBack serves Peer here, behind the broker, and has the plugin ask it.
func (r *run) dialBack() (any, error) {
	id := r.broker.NextId()
	servers := make(chan *grpc.Server, 1)
	go r.broker.AcceptAndServe(id, func(options []grpc.ServerOption) *grpc.Server {
		server := unlimited(options)
		(&implementation{version: 99, broker: r.broker}).register(server)
		servers <- server
		return server
	})
	found, err := r.one("DialBack", fields{"id": id, "nonce": r.nonce})
	select {
	case server := <-servers:
		server.Stop()
	case <-time.After(stdioTimeout):
	}
	return single(found, err)
}

// dialOffered has the plugin serve behind the broker, and dials it there.
func (r *run) dialOffered() (*grpc.ClientConn, error) {
	door, err := r.one("Offer", fields{"nonce": r.nonce})
	if err != nil {
		return nil, err
	}
	return r.broker.Dial(uint32(get(door, "id").Uint()))
}

// offer asks what the plugin serves behind the broker.
func (r *run) offer() (any, error) {
	conn, err := r.dialOffered()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return single(peer{conn}.one("Unary", fields{"nonce": r.nonce}))
}

// sockets counts the connections to sockets that plugins made, while one of them is a brokered one.
func (r *run) sockets() (any, error) {
	conn, err := r.dialOffered()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := (peer{conn}).one("Unary", fields{"nonce": r.nonce}); err != nil {
		return nil, err
	}
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	count := 0
	for _, line := range strings.Split(string(table), "\n") {
		row := strings.Fields(line)
		if len(row) == 8 && row[5] == connected && strings.HasPrefix(row[7], os.TempDir()+"/plugin") {
			count++
		}
	}
	return count, nil
}

// reattach asks through a second client, which is told where the plugin is.
func (r *run) reattach() (any, error) {
	again := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: handshake(), Plugins: plugin.PluginSet{"peer": dispenser{}}, AllowedProtocols: r.config.AllowedProtocols,
		Reattach: r.client.ReattachConfig(), Logger: r.config.Logger,
	})
	got, err := dispense(again)
	if err != nil {
		return nil, err
	}
	return single(got.one("Unary", fields{"nonce": r.nonce}))
}

// crash has the plugin end itself in a call.
func (r *run) crash() (any, error) {
	_, err := r.one("Crash", fields{"nonce": r.nonce})
	late := time.After(stdioTimeout)
	for !r.client.Exited() {
		select {
		case <-late:
			return "still running", err
		case <-time.After(time.Millisecond):
		}
	}
	return nil, err
}

func dispense(client *plugin.Client) (dispensed, error) {
	protocol, err := client.Client()
	if err != nil {
		return dispensed{}, err
	}
	raw, err := protocol.Dispense("peer")
	if err != nil {
		return dispensed{}, err
	}
	return raw.(dispensed), nil
}

// multiplexed asks for it in go-plugins that have it.
func multiplexed(config *plugin.ClientConfig) error {
	field := reflect.ValueOf(config).Elem().FieldByName("GRPCBrokerMultiplex")
	if !field.IsValid() {
		return fmt.Errorf("this go-plugin cannot multiplex")
	}
	field.SetBool(true)
	return nil
}

// runHost is `peer host`.
func runHost(arguments []string) error {
	flags := flag.NewFlagSet("host", flag.ExitOnError)
	autoMTLS := flags.Bool("automtls", false, "AutoMTLS")
	mux := flags.Bool("mux", false, "broker multiplexing")
	versions := flags.String("versions", "1", "application versions to offer, with commas")
	nonce := flags.String("nonce", "", "goes into every answer")
	do := flags.String("do", "unary", "steps, with commas")
	attach := flags.String("attach", "", "network:address:pid of a plugin that runs already, instead of a command")
	flags.Parse(arguments)

	r := &run{nonce: *nonce, stdout: newLines(), stderr: newLines()}
	command := exec.Command("")
	r.config = &plugin.ClientConfig{
		HandshakeConfig: handshake(), VersionedPlugins: map[int]plugin.PluginSet{}, AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS: *autoMTLS, StartTimeout: startTimeout, SyncStdout: r.stdout, SyncStderr: r.stderr,
		GRPCDialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32))},
		Logger:          hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Debug, JSONFormat: true}),
	}
	for _, version := range numbers(*versions) {
		r.config.VersionedPlugins[version] = plugin.PluginSet{"peer": dispenser{}}
	}
	if *attach != "" {
		r.config.Plugins = plugin.PluginSet{"peer": dispenser{}}
		r.config.Reattach = reattachment(*attach)
	} else {
		command = exec.Command(flags.Arg(0), flags.Args()[1:]...)
		r.config.Cmd = command
	}
	if *mux {
		if err := multiplexed(r.config); err != nil {
			return err
		}
	}
	r.client = plugin.NewClient(r.config)
	defer r.client.Kill()
	got, err := dispense(r.client)
	if err != nil {
		return err
	}
	r.dispensed = got
	started := map[string]any{"protocol": string(r.client.Protocol()), "version": r.client.NegotiatedVersion()}
	if command.Process != nil {
		started["pid"] = command.Process.Pid
	}
	tell("started", started, nil)
	for _, name := range strings.Split(*do, ",") {
		found, err := steps[name](r)
		tell(name, found, err)
	}
	begin := time.Now()
	r.client.Kill()
	stopped := map[string]any{"exited": r.client.Exited(), "ms": time.Since(begin).Milliseconds()}
	if command.ProcessState != nil {
		stopped["state"] = command.ProcessState.String()
	}
	tell("stopped", stopped, nil)
	return nil
}

// tell prints one step.
func tell(step string, found any, err error) {
	line := map[string]any{"step": step, "found": found, "host_pid": os.Getpid()}
	if err != nil {
		line["error"] = err.Error()
		line["code"] = status.Code(err).String()
		line["message"] = status.Convert(err).Message()
	}
	printJSON(line)
}
