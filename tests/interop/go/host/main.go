// A go-plugin host, with go-plugin as it is, that knows a plugin by the .proto of its interface alone.
//
//	host -proto dsp.proto [-call package.Service/Method={json}]... -- python dsp_plugin.py
//
// It starts the plugin, pings it, makes the calls one after another, kills it as every Go host does, and prints one JSON object per step.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/bufbuild/protocompile"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// A plugin starts Python and imports numpy, on a machine that may be busy.
const startTimeout = 60 * time.Second

// calls collects the -call flags, in order.
type calls []string

func (c *calls) String() string         { return strings.Join(*c, " ") }
func (c *calls) Set(value string) error { *c = append(*c, value); return nil }

// raw hands out the connection: there is no generated code to wrap it in.
type raw struct {
	plugin.NetRPCUnsupportedPlugin
}

func (raw) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return fmt.Errorf("this is a host") }
func (raw) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (interface{}, error) {
	return conn, nil
}

func tell(step map[string]any) {
	line, err := json.Marshal(step)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

// invoke makes one call, with messages made from the .proto at run time.
func invoke(conn *grpc.ClientConn, file protoreflect.FileDescriptor, call string) map[string]any {
	path, request, _ := strings.Cut(call, "=")
	service, name, _ := strings.Cut(path, "/")
	method := file.Services().ByName(protoreflect.FullName(service).Name()).Methods().ByName(protoreflect.Name(name))
	in, out := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if err := protojson.Unmarshal([]byte(request), in); err != nil {
		return map[string]any{"call": path, "malformed": err.Error()}
	}
	if err := conn.Invoke(context.Background(), "/"+path, in, out); err != nil {
		return map[string]any{"call": path, "code": status.Code(err).String(), "message": status.Convert(err).Message()}
	}
	answer, err := protojson.Marshal(out)
	if err != nil {
		return map[string]any{"call": path, "malformed": err.Error()}
	}
	return map[string]any{"call": path, "response": json.RawMessage(answer)}
}

func run() error {
	var todo calls
	proto := flag.String("proto", "", "the .proto of the interface")
	key := flag.String("key", "", "magic cookie key")
	value := flag.String("value", "", "magic cookie value")
	flag.Var(&todo, "call", "package.Service/Method={json}, any number of times")
	flag.Parse()

	files, err := (&protocompile.Compiler{Resolver: &protocompile.SourceResolver{}}).Compile(context.Background(), *proto)
	if err != nil {
		return fmt.Errorf("%s does not compile: %w", *proto, err)
	}
	command := exec.Command(flag.Arg(0), flag.Args()[1:]...)
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: *key, MagicCookieValue: *value},
		Plugins:          plugin.PluginSet{"raw": raw{}},
		Cmd:              command,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		StartTimeout:     startTimeout,
		SyncStdout:       os.Stderr,
		SyncStderr:       os.Stderr,
		Logger:           hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Debug, JSONFormat: true}),
	})
	defer client.Kill()
	protocol, err := client.Client()
	if err != nil {
		return err
	}
	tell(map[string]any{"step": "started", "protocol": string(client.Protocol()), "version": client.NegotiatedVersion()})
	if err := protocol.Ping(); err != nil {
		return err
	}
	tell(map[string]any{"step": "pinged"})
	dispensed, err := protocol.Dispense("raw")
	if err != nil {
		return err
	}
	for _, call := range todo {
		answer := invoke(dispensed.(*grpc.ClientConn), files[0], call)
		answer["step"] = "called"
		tell(answer)
	}
	begin := time.Now()
	client.Kill()
	tell(map[string]any{"step": "stopped", "exited": client.Exited(), "state": command.ProcessState.String(), "ms": time.Since(begin).Milliseconds()})
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		os.Exit(1)
	}
}
