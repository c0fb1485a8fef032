// A go-plugin peer, with go-plugin as it is. It serves the service of peer.proto, or asks a plugin that does.
//
//	peer plugin [-versions 1,2] [-test]
//	peer bench [-automtls] -- python plugin.py
//	peer host [-automtls] [-mux] [-versions 1,2] -nonce text -do unary,large,... -- python plugin.py
//
// A host prints one JSON object per step. It is built with several versions of go-plugin, so it uses what all of them have.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/hashicorp/go-plugin"
)

func handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "FASTPLUG_INTEROP", MagicCookieValue: "peer"}
}

func numbers(text string) []int {
	var found []int
	for _, part := range strings.Split(text, ",") {
		number, err := strconv.Atoi(part)
		if err != nil {
			fail(err)
		}
		found = append(found, number)
	}
	return found
}

// reattachment reads network:address:pid.
func reattachment(text string) *plugin.ReattachConfig {
	network, rest, _ := strings.Cut(text, ":")
	cut := strings.LastIndex(rest, ":")
	pid, err := strconv.Atoi(rest[cut+1:])
	if err != nil {
		fail(err)
	}
	var address net.Addr
	if network == "unix" {
		address, err = net.ResolveUnixAddr(network, rest[:cut])
	} else {
		address, err = net.ResolveTCPAddr(network, rest[:cut])
	}
	if err != nil {
		fail(err)
	}
	return &plugin.ReattachConfig{Protocol: plugin.ProtocolGRPC, ProtocolVersion: 1, Addr: address, Pid: pid}
}

func printJSON(value any) {
	if err := json.NewEncoder(os.Stdout).Encode(value); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "peer:", err)
	os.Exit(1)
}

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("peer plugin, peer host or peer bench"))
	}
	var err error
	switch os.Args[1] {
	case "plugin":
		err = servePlugin(os.Args[2:])
	case "bench":
		err = runBench(os.Args[2:])
	case "host":
		err = runHost(os.Args[2:])
	default:
		err = fmt.Errorf("unknown role %q", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}
