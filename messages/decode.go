package messages

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	fulmarv1 "fulmar/messages/fulmar/v1"
)

// maxDepth bounds how deep a JSON request may nest.
const maxDepth = 100

// NewRequest makes the empty request of a kind.
func NewRequest(kind fulmarv1.Kind) proto.Message {
	switch kind {
	case fulmarv1.Kind_KIND_DEPLOY:
		return &fulmarv1.DeployRequest{}
	case fulmarv1.Kind_KIND_PROMOTE:
		return &fulmarv1.PromoteRequest{}
	case fulmarv1.Kind_KIND_ROLLBACK:
		return &fulmarv1.RollbackRequest{}
	case fulmarv1.Kind_KIND_RETIRE:
		return &fulmarv1.RetireRequest{}
	case fulmarv1.Kind_KIND_RENEW:
		return &fulmarv1.RenewRequest{}
	case fulmarv1.Kind_KIND_DISCARD:
		return &fulmarv1.DiscardRequest{}
	}
	return nil
}

// DecodeRequest reads the body of a request: JSON if [IsJSON] says so, else protobuf; an empty body is an empty request. Unknown fields are refused by name. The error is a [Refusal].
func DecodeRequest(kind fulmarv1.Kind, body []byte) (proto.Message, error) {
	m := NewRequest(kind)
	if m == nil {
		return nil, Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "unknown kind of request %d", kind)
	}
	if err := Decode(body, m); err != nil {
		return nil, Refuse(fulmarv1.ReasonCode_REASON_CODE_INVALID, "%s request: %w", KindName(kind), err)
	}
	return m, nil
}

// Decode reads a message from JSON, if [IsJSON] says so, else from protobuf. Unknown fields are refused by name.
func Decode(body []byte, m proto.Message) error {
	if IsJSON(body) {
		return decodeJSON(body, m)
	}
	if err := proto.Unmarshal(body, m); err != nil {
		if bytes.HasPrefix(textOf(body), []byte("{")) { // JSON is meant
			return decodeJSON(body, m)
		}
		return fmt.Errorf("neither JSON nor protobuf: %w", plain(err))
	}
	return unknown(m.ProtoReflect())
}

// unknown finds a field that the message does not have, at any depth.
func unknown(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		number, _, _ := protowire.ConsumeTag(m.GetUnknown())
		if f := m.Descriptor().Fields().ByNumber(number); f != nil {
			return fmt.Errorf("field %s of %s has the wrong type", f.Name(), m.Descriptor().Name())
		}
		return fmt.Errorf("unknown field number %d of %s", number, m.Descriptor().Name())
	}
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() == nil || f.IsMap() { // a map of ours has only words in it
			return true
		}
		if f.IsList() {
			for i := range v.List().Len() {
				if err = unknown(v.List().Get(i).Message()); err != nil {
					return false
				}
			}
			return true
		}
		err = unknown(v.Message())
		return err == nil
	})
	return err
}

// IfNewest gives the generation that a request means, if it names one.
func IfNewest(request proto.Message) (uint64, bool) {
	m := request.ProtoReflect()
	f := m.Descriptor().Fields().ByName("if_newest")
	if f == nil || !m.Has(f) {
		return 0, false
	}
	return m.Get(f).Uint(), true
}
