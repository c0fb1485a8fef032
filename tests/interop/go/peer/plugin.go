package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// call is one call as its handler sees it: requests in, responses out, whatever its kind.
type call struct {
	stream grpc.ServerStream
	method protoreflect.MethodDescriptor
}

func (c call) receive() (*dynamicpb.Message, error) {
	request := dynamicpb.NewMessage(c.method.Input())
	return request, c.stream.RecvMsg(request)
}

func (c call) send(values fields) error { return c.stream.SendMsg(message(c.method.Output(), values)) }

// implementation serves Peer, at one application version.
type implementation struct {
	version int
	broker  *plugin.GRPCBroker
}

// unlimited is for messages of 64 MiB: grpc-go takes 4 MiB unless told otherwise.
func unlimited(options []grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(options, grpc.MaxRecvMsgSize(math.MaxInt32))...)
}

// register adds the service; one description fits all four kinds.
func (i *implementation) register(server *grpc.Server) {
	description := &grpc.ServiceDesc{ServiceName: string(service.FullName()), HandlerType: (*any)(nil), Metadata: fileName}
	methods := service.Methods()
	for n := 0; n < methods.Len(); n++ {
		method := methods.Get(n)
		handle := func(_ any, stream grpc.ServerStream) error { return i.handle(call{stream, method}) }
		description.Streams = append(description.Streams, grpc.StreamDesc{
			StreamName: string(method.Name()), Handler: handle, ServerStreams: true, ClientStreams: true,
		})
	}
	server.RegisterService(description, i)
}

func (i *implementation) handle(c call) error {
	name := string(c.method.Name())
	if c.method.IsStreamingClient() {
		return i.handleStream(c, name)
	}
	request, err := c.receive()
	if err != nil {
		return err
	}
	nonce := func() string { return get(request, "nonce").String() }
	switch name {
	case "ServerStream":
		for index := 0; index < int(get(request, "count").Uint()); index++ {
			if err := c.send(answer(name, nonce(), index, i.version)); err != nil {
				return err
			}
		}
		return nil
	case "Large":
		return c.send(fields{"nonce": digest(name, os.Getpid(), nonce(), 0), "data": turned(get(request, "data").Bytes())})
	case "Same":
		return c.stream.SendMsg(request)
	case "Print":
		out := os.Stdout
		if get(request, "to_stderr").Bool() {
			out = os.Stderr
		}
		fmt.Fprintln(out, digest(name, os.Getpid(), nonce(), 0))
	case "DialBack":
		return i.dialBack(c, uint32(get(request, "id").Uint()), nonce())
	case "Offer":
		id := i.broker.NextId()
		go i.broker.AcceptAndServe(id, func(options []grpc.ServerOption) *grpc.Server {
			server := unlimited(options)
			i.register(server)
			return server
		})
		return c.send(fields{"id": id, "nonce": digest(name, os.Getpid(), nonce(), 0)})
	case "Fail":
		return status.Error(codes.FailedPrecondition, digest(name, os.Getpid(), nonce(), 0))
	case "Wait":
		<-c.stream.Context().Done()
		return c.stream.Context().Err()
	case "Crash":
		os.Exit(7)
	case "Echo":
		text, err := protojson.Marshal(request)
		if err != nil {
			return err
		}
		return c.send(fields{"same": request.ProtoReflect(), "json": string(text)})
	}
	return c.send(answer(name, nonce(), 0, i.version))
}

// handleStream is for the methods whose caller streams.
func (i *implementation) handleStream(c call, name string) error {
	var nonces []string
	for {
		request, err := c.receive()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		nonces = append(nonces, get(request, "nonce").String())
		if name == "BidiStream" {
			if err := c.send(answer(name, nonces[len(nonces)-1], len(nonces)-1, i.version)); err != nil {
				return err
			}
		}
	}
	if name == "BidiStream" {
		return nil
	}
	return c.send(answer(name, joined(nonces), len(nonces), i.version))
}

// dialBack asks the host through the broker, and passes its answer on.
func (i *implementation) dialBack(c call, id uint32, nonce string) error {
	conn, err := i.broker.Dial(id)
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer conn.Close()
	found, err := peer{conn}.one("Unary", fields{"nonce": nonce})
	if err != nil {
		return err
	}
	return c.stream.SendMsg(found)
}

// served is the plugin as go-plugin wants it.
type served struct {
	plugin.NetRPCUnsupportedPlugin
	version int
}

func (s served) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	(&implementation{s.version, broker}).register(server)
	return nil
}

func (s served) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, fmt.Errorf("this is a plugin")
}

// servePlugin is `peer plugin`.
func servePlugin(arguments []string) error {
	flags := flag.NewFlagSet("plugin", flag.ExitOnError)
	versions := flags.String("versions", "1", "application versions to serve, with commas")
	testMode := flags.Bool("test", false, "start by hand, print where to attach, stay until SIGTERM")
	flags.Parse(arguments)

	config := &plugin.ServeConfig{HandshakeConfig: handshake(), VersionedPlugins: map[int]plugin.PluginSet{}, GRPCServer: unlimited}
	for _, version := range numbers(*versions) {
		config.VersionedPlugins[version] = plugin.PluginSet{"peer": served{version: version}}
	}
	if *testMode {
		return serveByHand(config)
	}
	plugin.Serve(config)
	return nil
}

func serveByHand(config *plugin.ServeConfig) error {
	context, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	where, closed := make(chan *plugin.ReattachConfig, 1), make(chan struct{})
	config.Test = &plugin.ServeTestConfig{Context: context, ReattachConfigCh: where, CloseCh: closed}
	go plugin.Serve(config)
	at := <-where
	// The form of TF_REATTACH_PROVIDERS.
	address := map[string]any{"Network": at.Addr.Network(), "String": at.Addr.String()}
	err := json.NewEncoder(os.Stdout).Encode(map[string]any{
		"peer": map[string]any{
			"Protocol": at.Protocol, "ProtocolVersion": at.ProtocolVersion, "Pid": at.Pid, "Test": at.Test, "Addr": address,
		},
	})
	<-closed
	return err
}
