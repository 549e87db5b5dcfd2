package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

type decodeCmd struct {
	As string `default:"auto" enum:"auto,event,build,head,lease,network,host,deploy,stats" help:"What it is: ${enum}."`
}

// Run prints a message of the bus as JSON.
func (c *decodeCmd) Run(e *env) error {
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		return fmt.Errorf("read the message: %w", err)
	}
	m, err := decode(c.As, body)
	if err != nil {
		return err
	}
	text, err := protojson.MarshalOptions{Multiline: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	_, err = fmt.Fprintln(e.out, string(text))
	return err
}

// decode reads a message: of the kind named, or of the first kind that explains it wholly.
func decode(as string, body []byte) (proto.Message, error) {
	kinds := []struct {
		name string
		make func() proto.Message
		fits func(proto.Message) bool
	}{
		{"event", func() proto.Message { return &fulmarv1.Event{} }, func(m proto.Message) bool { return messages.Verb(m.(*fulmarv1.Event).GetVerb()).Known() }},
		{"build", func() proto.Message { return &fulmarv1.BuildRecord{} }, func(m proto.Message) bool { return messages.IsDigest(m.(*fulmarv1.BuildRecord).GetImage()) }},
		{"head", func() proto.Message { return &fulmarv1.Head{} }, func(m proto.Message) bool { return m.(*fulmarv1.Head).GetNewest() > 0 }},
		{"lease", func() proto.Message { return &fulmarv1.Lease{} }, func(m proto.Message) bool { return strings.Count(m.(*fulmarv1.Lease).GetInstance(), ".") == 2 }},
		{"network", func() proto.Message { return &fulmarv1.Network{} }, func(m proto.Message) bool { return m.(*fulmarv1.Network).GetPrefix() != "" }},
		{"host", func() proto.Message { return &fulmarv1.Host{} }, func(m proto.Message) bool { return m.(*fulmarv1.Host).GetName() != "" }},
		{"stats", func() proto.Message { return &fulmarv1.Stats{} }, func(m proto.Message) bool { return m.(*fulmarv1.Stats).GetInstance() != "" }},
		{"deploy", func() proto.Message { return &fulmarv1.DeployRequest{} }, func(m proto.Message) bool { return len(m.(*fulmarv1.DeployRequest).GetUnits()) > 0 }},
	}
	for _, k := range kinds {
		if as != "auto" && as != k.name {
			continue
		}
		m := k.make()
		err := messages.Decode(body, m)
		if as == k.name {
			return m, err
		}
		if err == nil && k.fits(m) && valid(m.ProtoReflect()) {
			return m, nil
		}
	}
	return nil, fmt.Errorf("the %d bytes are no event, build, head, lease, network, host, statistics or deploy request", len(body))
}

// valid reports whether every enum of a message has a value that it knows.
func valid(m protoreflect.Message) bool {
	ok := true
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Enum() != nil && !f.IsList():
			ok = f.Enum().Values().ByNumber(v.Enum()) != nil
		case f.Message() != nil && !f.IsList() && !f.IsMap():
			ok = valid(v.Message())
		}
		return ok
	})
	return ok
}
