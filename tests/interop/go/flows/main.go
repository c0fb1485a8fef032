// Streams and callbacks of a fastplug interface, called and served by go-plugin as it is. All it knows is the .proto of the interface.
//
//	flows -proto flows.proto -key K -value V host python flows_plugin.py
//	flows -proto flows.proto -key K -value V plugin
//
// The host prints one JSON object per step. The plugin serves Count, Total, Doubled, Each and Keep.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/bufbuild/protocompile"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// A plugin starts Python and imports numpy, on a machine that may be busy.
const startTimeout = 60 * time.Second

var file protoreflect.FileDescriptor

// method finds one of the interface's own service, or the method of a callback's.
func method(service, name string) protoreflect.MethodDescriptor {
	return file.Services().ByName(protoreflect.Name(service)).Methods().ByName(protoreflect.Name(name))
}

func path(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

func message(of protoreflect.MessageDescriptor, text string) *dynamicpb.Message {
	made := dynamicpb.NewMessage(of)
	if err := protojson.Unmarshal([]byte(text), made); err != nil {
		panic(err)
	}
	return made
}

// integer is a field of a message that came.
func integer(from *dynamicpb.Message, field string) int64 {
	value := from.Get(from.Descriptor().Fields().ByName(protoreflect.Name(field)))
	if number, ok := value.Interface().(uint32); ok {
		return int64(number)
	}
	return value.Int()
}

// answer serves one method of a callback: result is made of the first argument.
func answer(m protoreflect.MethodDescriptor, make func(int64) int64) *grpc.ServiceDesc {
	handle := func(_ any, stream grpc.ServerStream) error {
		request := dynamicpb.NewMessage(m.Input())
		if err := stream.RecvMsg(request); err != nil {
			return err
		}
		return stream.SendMsg(message(m.Output(), fmt.Sprintf(`{"result": %d}`, make(integer(request, "argument0")))))
	}
	return &grpc.ServiceDesc{ServiceName: string(m.Parent().FullName()), HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{
		{StreamName: string(m.Name()), Handler: handle, ServerStreams: true, ClientStreams: true},
	}}
}

// -- the host

type connection struct {
	conn   *grpc.ClientConn
	broker *plugin.GRPCBroker
}

type flows struct {
	plugin.NetRPCUnsupportedPlugin
}

func (flows) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	for _, name := range []string{"Count", "Total", "Doubled", "Each", "Keep"} {
		m := method("Flows", name)
		described.Streams = append(described.Streams, grpc.StreamDesc{
			StreamName: name, ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, stream grpc.ServerStream) error { return serve(broker, m, stream) },
		})
	}
	described.ServiceName = string(method("Flows", "Count").Parent().FullName())
	server.RegisterService(&described, nil)
	return nil
}

func (flows) GRPCClient(_ context.Context, broker *plugin.GRPCBroker, conn *grpc.ClientConn) (interface{}, error) {
	return connection{conn, broker}, nil
}

func tell(step string, found any) {
	line, err := json.Marshal(map[string]any{"step": step, "found": found})
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

// call sends all requests, and returns the results that come, most of them at most.
func (c connection) call(name string, most int, requests ...string) ([]int64, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m := method("Flows", name)
	stream, err := c.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, path(m))
	if err != nil {
		return nil, err
	}
	for _, request := range requests {
		if err := stream.SendMsg(message(m.Input(), request)); err != nil {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	found := []int64{}
	for len(found) < most {
		response := dynamicpb.NewMessage(m.Output())
		if err := stream.RecvMsg(response); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return found, err
		}
		if result := m.Output().Fields().ByName("result"); result.Kind() == protoreflect.Int64Kind && !result.IsList() {
			found = append(found, integer(response, "result"))
		}
	}
	return found, nil
}

func (c connection) steps() error {
	counted, err := c.call("Count", 100, `{"n": 5}`)
	if err != nil {
		return err
	}
	tell("counted", counted)
	if counted, err = c.call("Count", 3, `{"n": 1000000000}`); err != nil {
		return err
	}
	tell("left", counted)
	total, err := c.call("Total", 1, `{"values": 1}`, `{"values": 2}`, `{}`, `{"values": 39}`)
	if err != nil {
		return err
	}
	tell("totalled", total)
	doubled, err := c.call("Doubled", 100, `{"values": 1}`, `{"values": 2}`)
	if err != nil {
		return err
	}
	tell("doubled", doubled)
	id := c.broker.NextId()
	go c.broker.AcceptAndServe(id, func(options []grpc.ServerOption) *grpc.Server {
		server := grpc.NewServer(options...)
		server.RegisterService(answer(method("EachTell", "Call"), func(n int64) int64 { return 3 * n }), nil)
		return server
	})
	each, err := c.call("Each", 1, fmt.Sprintf(`{"n": 4, "tell": %d}`, id))
	if err != nil {
		return err
	}
	tell("called back", each)
	_, err = c.call("BreakAt", 100, `{"n": 3}`)
	tell("broken", fmt.Sprint(err))
	return nil
}

func host(handshake plugin.HandshakeConfig, command []string) error {
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  handshake,
		Plugins:          plugin.PluginSet{"flows": flows{}},
		Cmd:              exec.Command(command[0], command[1:]...),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		StartTimeout:     startTimeout,
		SyncStderr:       os.Stderr,
		Logger:           hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Info}),
	})
	defer client.Kill()
	protocol, err := client.Client()
	if err != nil {
		return err
	}
	dispensed, err := protocol.Dispense("flows")
	if err != nil {
		return err
	}
	return dispensed.(connection).steps()
}

// -- the plugin

var (
	described = grpc.ServiceDesc{HandlerType: (*any)(nil)}
	kept      []*grpc.ClientConn
)

func result(m protoreflect.MethodDescriptor, n int64) *dynamicpb.Message {
	return message(m.Output(), fmt.Sprintf(`{"result": %d}`, n))
}

// ask calls a callback of the host.
func ask(ctx context.Context, conn *grpc.ClientConn, service string, n int64) (int64, error) {
	m := method(service, "Call")
	response := dynamicpb.NewMessage(m.Output())
	err := conn.Invoke(ctx, path(m), message(m.Input(), fmt.Sprintf(`{"argument0": %d}`, n)), response)
	if err != nil {
		return 0, err
	}
	return integer(response, "result"), nil
}

func serve(broker *plugin.GRPCBroker, m protoreflect.MethodDescriptor, stream grpc.ServerStream) error {
	request := dynamicpb.NewMessage(m.Input())
	var total int64
	switch m.Name() {
	case "Total", "Doubled":
		for {
			err := stream.RecvMsg(request)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			value := integer(request, "values")
			total += value
			if m.Name() == "Doubled" {
				if err := stream.SendMsg(result(m, 2*value)); err != nil {
					return err
				}
			}
		}
		if m.Name() == "Doubled" {
			return nil
		}
		return stream.SendMsg(result(m, total))
	}
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	switch m.Name() {
	case "Count":
		for n := int64(0); n < integer(request, "n"); n++ {
			if err := stream.SendMsg(result(m, n)); err != nil {
				return err
			}
		}
		return nil
	case "Each":
		conn, err := broker.Dial(uint32(integer(request, "tell")))
		if err != nil {
			return err
		}
		defer conn.Close()
		for n := int64(0); n < integer(request, "n"); n++ {
			told, err := ask(stream.Context(), conn, "EachTell", n)
			if err != nil {
				return err
			}
			total += told
		}
		return stream.SendMsg(result(m, total))
	default: // Keep: the connection stays, and a goroutine calls back after the answer
		conn, err := broker.Dial(uint32(integer(request, "tell")))
		if err != nil {
			return err
		}
		kept = append(kept, conn)
		go func() {
			<-stream.Context().Done()
			_, err := ask(context.Background(), conn, "KeepTell", 42)
			fmt.Fprintln(os.Stderr, "asked afterwards:", err)
			conn.Close()
		}()
		return stream.SendMsg(message(m.Output(), `{}`))
	}
}

func main() {
	proto := flag.String("proto", "", "the .proto of the interface")
	key := flag.String("key", "", "magic cookie key")
	value := flag.String("value", "", "magic cookie value")
	flag.Parse()
	files, err := (&protocompile.Compiler{Resolver: &protocompile.SourceResolver{}}).Compile(context.Background(), *proto)
	if err != nil {
		fmt.Fprintln(os.Stderr, *proto, "does not compile:", err)
		os.Exit(1)
	}
	file = files[0]
	handshake := plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: *key, MagicCookieValue: *value}
	if flag.Arg(0) == "plugin" {
		plugin.Serve(&plugin.ServeConfig{
			HandshakeConfig: handshake, Plugins: plugin.PluginSet{"flows": flows{}}, GRPCServer: plugin.DefaultGRPCServer,
		})
		return
	}
	if err := host(handshake, flag.Args()[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "host:", err)
		os.Exit(1)
	}
}
