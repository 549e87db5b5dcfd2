package ipam

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

// anyAddress stands for a unit's own address in its digest: the one with which the request was checked, so what was
// accepted renders here too.
const anyAddress = "192.0.2.1"

// digest is the configuration digest of a unit: image, arguments, memory, CPUs, network, device and whether it is started again; not its own
// address, ports and health checks. ip gives the addresses of the units it uses, which have theirs already.
func digest(spec *fulmarv1.UnitSpec, unit *fulmarv1.Unit, network *fulmarv1.Network, at messages.Address, ip func(string) (string, error)) (string, error) {
	at.IP = anyAddress
	rendered, err := messages.RenderArgs(spec.GetArgs(), at, ip)
	if err != nil {
		return "", messages.Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "unit %s: %w", spec.GetName(), err)
	}
	// Both forms: an argument that names its address is not one that has the stand-in written out.
	args := slices.Concat(spec.GetArgs(), rendered)
	// What the digest covers is said by the fields of a message, in the deterministic form: no separator to forge.
	covered, err := proto.MarshalOptions{Deterministic: true}.Marshal(&fulmarv1.UnitSpec{
		Image: &fulmarv1.Image{Sha256: unit.GetImage()}, Args: args, Memory: spec.GetMemory(), Cpus: spec.GetCpus(),
		Device: unit.GetDevice(), Name: network.GetName(), Restart: spec.GetRestart(),
	})
	if err != nil {
		return "", fmt.Errorf("digest of unit %s: %w", spec.GetName(), err)
	}
	sum := sha256.Sum256(covered)
	return hex.EncodeToString(sum[:]), nil
}
