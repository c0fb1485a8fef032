package main

import (
	"context"
	"fmt"

	reflection "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// reflection asks the plugin what it serves, with grpc-go's own messages, and builds its service from the answer.
func (r *run) reflection() (any, error) {
	stream, err := reflection.NewServerReflectionClient(r.conn).ServerReflectionInfo(context.Background())
	if err != nil {
		return nil, err
	}
	defer stream.CloseSend()
	ask := func(request *reflection.ServerReflectionRequest) (*reflection.ServerReflectionResponse, error) {
		if err := stream.Send(request); err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	listed, err := ask(&reflection.ServerReflectionRequest{MessageRequest: &reflection.ServerReflectionRequest_ListServices{ListServices: "*"}})
	if err != nil {
		return nil, err
	}
	services := []string{}
	for _, one := range listed.GetListServicesResponse().GetService() {
		services = append(services, one.GetName())
	}
	name := string(service.FullName())
	found, err := ask(&reflection.ServerReflectionRequest{
		MessageRequest: &reflection.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name},
	})
	if err != nil {
		return nil, err
	}
	set := &descriptorpb.FileDescriptorSet{}
	for _, raw := range found.GetFileDescriptorResponse().GetFileDescriptorProto() {
		file := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(raw, file); err != nil {
			return nil, err
		}
		set.File = append(set.File, file)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, err
	}
	descriptor, err := files.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, fmt.Errorf("%w in %d files: %v", err, len(set.File), found.GetErrorResponse())
	}
	methods := []string{}
	all := descriptor.(protoreflect.ServiceDescriptor).Methods()
	for n := 0; n < all.Len(); n++ {
		methods = append(methods, string(all.Get(n).Name()))
	}
	return map[string]any{"services": services, "methods": methods}, nil
}
