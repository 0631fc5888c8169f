// CoreDNS with all its plugins, as its own release links it: what Peak is compared with.
package main

import (
	_ "github.com/coredns/coredns/core/plugin"
	"github.com/coredns/coredns/coremain"
)

func main() {
	coremain.Run()
}
