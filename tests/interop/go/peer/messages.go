package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

//go:embed peer.proto
var source string

const fileName = "peer.proto"

// service is the descriptor of Peer, from the embedded text: there is no generated code.
var service = compiled()

func compiled() protoreflect.ServiceDescriptor {
	sources := protocompile.SourceAccessorFromMap(map[string]string{fileName: source})
	compiler := protocompile.Compiler{Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{Accessor: sources})}
	files, err := compiler.Compile(context.Background(), fileName)
	if err != nil {
		panic(err)
	}
	// Where go-plugin's reflection service looks.
	if err := protoregistry.GlobalFiles.RegisterFile(files[0]); err != nil {
		panic(err)
	}
	return files[0].Services().ByName("Peer")
}

type fields map[string]any

// message makes one of the kind, with its fields set.
func message(kind protoreflect.MessageDescriptor, values fields) *dynamicpb.Message {
	made := dynamicpb.NewMessage(kind)
	for name, value := range values {
		made.Set(kind.Fields().ByName(protoreflect.Name(name)), protoreflect.ValueOf(value))
	}
	return made
}

func get(of *dynamicpb.Message, name string) protoreflect.Value {
	return of.Get(of.Descriptor().Fields().ByName(protoreflect.Name(name)))
}

// digest is what only the process with that pid can know to be its own.
func digest(method string, pid int, nonce string, index int) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s|%d|%s|%d", method, pid, nonce, index)))
	return hex.EncodeToString(sum[:])
}

func answer(method, nonce string, index, version int) fields {
	pid := os.Getpid()
	return fields{"pid": int64(pid), "digest": digest(method, pid, nonce, index), "index": uint32(index), "version": uint32(version)}
}

// peer asks the other side.
type peer struct{ conn *grpc.ClientConn }

// open starts a call; one description fits all four kinds.
func (p peer) open(name string) (grpc.ClientStream, protoreflect.MethodDescriptor, error) {
	method := service.Methods().ByName(protoreflect.Name(name))
	description := &grpc.StreamDesc{StreamName: name, ServerStreams: true, ClientStreams: true}
	stream, err := p.conn.NewStream(context.Background(), description, fmt.Sprintf("/%s/%s", service.FullName(), name))
	return stream, method, err
}

// call sends all requests, then gathers all responses.
func (p peer) call(name string, requests ...fields) ([]*dynamicpb.Message, error) {
	stream, method, err := p.open(name)
	if err != nil {
		return nil, err
	}
	for _, request := range requests {
		// io.EOF says that the call is over; why, the next receive says.
		if err := stream.SendMsg(message(method.Input(), request)); err != nil && err != io.EOF {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	var found []*dynamicpb.Message
	for {
		response := dynamicpb.NewMessage(method.Output())
		if err := stream.RecvMsg(response); err == io.EOF {
			return found, nil
		} else if err != nil {
			return found, err
		}
		found = append(found, response)
	}
}

// one is call for a single request and response.
func (p peer) one(name string, request fields) (*dynamicpb.Message, error) {
	found, err := p.call(name, request)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s gave %d responses", name, len(found))
	}
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

// alternate sends each request when the one before it has its response.
func (p peer) alternate(name string, requests ...fields) ([]*dynamicpb.Message, error) {
	stream, method, err := p.open(name)
	if err != nil {
		return nil, err
	}
	var found []*dynamicpb.Message
	for _, request := range requests {
		if err := stream.SendMsg(message(method.Input(), request)); err != nil {
			return found, err
		}
		response := dynamicpb.NewMessage(method.Output())
		if err := stream.RecvMsg(response); err != nil {
			return found, err
		}
		found = append(found, response)
	}
	return found, stream.CloseSend()
}

// turned is the data with every bit turned over.
func turned(data []byte) []byte {
	made := make([]byte, len(data))
	for i, b := range data {
		made[i] = ^b
	}
	return made
}

func joined(nonces []string) string { return strings.Join(nonces, ",") }

var _ proto.Message = (*dynamicpb.Message)(nil)
