package messages_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

const deploy = fulmarv1.Kind_KIND_DEPLOY

func request() *fulmarv1.DeployRequest {
	return &fulmarv1.DeployRequest{
		Network: "lan", IfNewest: proto.Uint64(41),
		Units: []*fulmarv1.UnitSpec{{
			Name: "web", Image: &fulmarv1.Image{Source: &fulmarv1.Image_File{File: "/srv/web.spt"}}, Args: []string{"--ip={{.IP}}"},
			Ports: []*fulmarv1.Port{{Port: 80}},
		}},
	}
}

func TestDecodeTellsFormsApartByTheFirstByte(t *testing.T) {
	binary, err := proto.Marshal(request())
	if err != nil {
		t.Fatal(err)
	}
	json, err := protojson.Marshal(request())
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{
		"protobuf": binary, "JSON": json, "JSON after a byte order mark": append([]byte("\uFEFF"), json...), "JSON after white space": append([]byte("\r\n \t"), json...),
	} {
		got, err := messages.DecodeRequest(deploy, body)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(request(), got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if n, ok := messages.IfNewest(got); !ok || n != 41 {
			t.Errorf("%s: if_newest is %d, %v", name, n, ok)
		}
	}
}

func TestDecodeOfAnEmptyBody(t *testing.T) {
	for number := range fulmarv1.Kind_name {
		kind := fulmarv1.Kind(number)
		m, err := messages.DecodeRequest(kind, nil)
		if kind == fulmarv1.Kind_KIND_UNSPECIFIED {
			if _, refused := messages.AsRefusal(err); !refused {
				t.Errorf("no kind gives %v, want a refusal", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if n, ok := messages.IfNewest(m); ok {
			t.Errorf("%s: if_newest is %d, want none", kind, n)
		}
	}
	if _, ok := messages.IfNewest(&fulmarv1.Port{}); ok {
		t.Error("a message without the field has if_newest")
	}
}

// field makes a protobuf body of one field.
func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

func TestDecodeRefusesInOneSentence(t *testing.T) {
	for name, c := range map[string]struct {
		kind fulmarv1.Kind
		body string
		want string
	}{
		"an unknown field of JSON is named": {
			deploy, `{"units":[],"colour":"red"}`,
			`deploy request: unknown field "colour" (line 1, column 13)`,
		},
		"after white space too": {
			deploy, "\n {\"units\":[],\"colour\":\"red\"}",
			`deploy request: unknown field "colour" (line 2, column 14)`,
		},
		"JSON that ends early, after white space": {
			deploy, ` {"units":[`,
			`deploy request: unexpected EOF`,
		},
		"a duration in minutes": {
			deploy, `{"drain":"1m30s"}`,
			`deploy request: "1m30s" is no duration: want "90s" (line 1, column 10)`,
		},
		"a duration without its unit": {
			deploy, `{"deadline":"5"}`,
			`deploy request: "5" is no duration: want "5s" (line 1, column 13)`,
		},
		"a duration as a number": {
			deploy, `{"units":[{"health":[{"startDeadline": 0.25}]}]}`,
			`deploy request: 0.25 is no duration: want "0.25s" (line 1, column 40)`,
		},
		"a duration as something else": {
			deploy, `{"drain":true}`,
			`deploy request: true is no duration: want seconds, as "5s" or "0.1s" (line 1, column 10)`,
		},
		"an unknown field of a unit is named": {
			deploy, "{\"units\":[\n {\"imagee\":{}}]}",
			`deploy request: unknown field "imagee" (line 2, column 3)`,
		},
		"a field of another kind of request is unknown": {
			fulmarv1.Kind_KIND_RETIRE, `{"units":[]}`,
			`retire request: unknown field "units" (line 1, column 2)`,
		},
		"text where a number belongs": {
			deploy, `{"units":[{"memory":"much"}]}`,
			`deploy request: invalid value for uint32 field memory: "much" (line 1, column 21)`,
		},
		"a number where text belongs": {
			deploy, `{"network":5}`,
			`deploy request: invalid value for string field network: 5 (line 1, column 12)`,
		},
		"a negative port": {
			deploy, `{"units":[{"ports":[{"port":-1}]}]}`,
			`deploy request: invalid value for uint32 field port: -1 (line 1, column 29)`,
		},
		"a list where a message belongs": {
			deploy, `{"units":[{"image":[]}]}`,
			`deploy request: field image is an object, but there is [ (line 1, column 20)`,
		},
		"a message where a list belongs": {
			deploy, `{"units":{}}`,
			`deploy request: field units is a list, but there is { (line 1, column 10)`,
		},
		"a text where a list belongs": {
			deploy, `{"units":[{"image":{"git":{"url":"http://ä","ref":"main"}},"cpus":[0],"args":"--ipv4"}]}`,
			`deploy request: field args is a list, but there is "--ipv4" (line 1, column 78)`,
		},
		"a text in a list of objects": {
			deploy, "{\"units\":[{\n\"args\":[\"a\"]}, \"x\"]}",
			`deploy request: field units is a list of objects, but there is "x" (line 2, column 16)`,
		},
		"a comma too many in a list": {
			deploy, `{"units":[{"args":["a",]}]}`,
			`deploy request: syntax error: unexpected token ] (line 1, column 24)`,
		},
		"a number that is missing": {
			deploy, `{"units":[{"memory": }]}`,
			`deploy request: syntax error: unexpected token } (line 1, column 22)`,
		},
		"a duration that is missing": {
			deploy, `{"drain": }`,
			`deploy request: syntax error: unexpected token } (line 1, column 11)`,
		},
		"two sources of one image": {
			deploy, `{"units":[{"image":{"file":"/a","url":"http://b"}}]}`,
			`deploy request: error parsing "url", oneof fulmar.v1.Image.source is already set (line 1, column 33)`,
		},
		"a duration without a unit": {
			deploy, `{"deadline":"60"}`,
			`deploy request: "60" is no duration: want "60s" (line 1, column 13)`,
		},
		"JSON that is cut off": {
			deploy, `{"units":`,
			`deploy request: unexpected EOF`,
		},
		"JSON with something behind it": {
			deploy, `{} x`,
			`deploy request: syntax error: invalid value x (line 1, column 4)`,
		},
		"a name given twice": {
			deploy, `{"network":"a","network":"b"}`,
			`deploy request: duplicate field "network" (line 1, column 16)`,
		},
		"a list is neither form": {
			deploy, `[]`,
			`deploy request: neither JSON nor protobuf: cannot parse invalid wire-format data`,
		},
		"a word is neither form": {
			deploy, `hello`,
			`deploy request: neither JSON nor protobuf: cannot parse invalid wire-format data`,
		},
		"an unknown field of protobuf has its number named": {
			deploy, string(field(99, []byte("x"))),
			`deploy request: unknown field number 99 of DeployRequest`,
		},
		"an unknown field of a unit has its number named": {
			deploy, string(field(1, field(77, []byte("x")))),
			`deploy request: unknown field number 77 of UnitSpec`,
		},
		"a known field of the wrong type is named": {
			deploy, string(field(3, []byte("x"))),
			`deploy request: field staged of DeployRequest has the wrong type`,
		},
		"text that is not UTF-8": {
			deploy, string(field(2, []byte{0xff})),
			`deploy request: neither JSON nor protobuf: string field contains invalid UTF-8`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := messages.DecodeRequest(c.kind, []byte(c.body))
			refusal, ok := messages.AsRefusal(err)
			if !ok || refusal.Code != fulmarv1.ReasonCode_REASON_CODE_INVALID {
				t.Fatalf("got %v, want a refusal of an invalid request", err)
			}
			if err.Error() != c.want {
				t.Errorf("got  %s\nwant %s", err, c.want)
			}
		})
	}
}

func TestDecodeBoundsTheDepth(t *testing.T) {
	body := `{"units":` + strings.Repeat("[", 5000)
	if _, err := messages.DecodeRequest(deploy, []byte(body)); err == nil {
		t.Error("5000 brackets were read")
	}
	deep := strings.Repeat(`{"a":`, 5000)
	if _, err := messages.DecodeRequest(deploy, []byte(deep)); err == nil {
		t.Error("5000 braces were read")
	}
}

// FuzzDecodeRequest reads what people may send. Whatever it is, the answer is a request that normalizes and then reads
// back as itself, or a refusal in one line.
func FuzzDecodeRequest(f *testing.F) {
	binary, err := proto.Marshal(request())
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		string(binary), `{}`, `{"units":[{"name":"web","image":{"file":"/a"}}]}`, `{"units":[{"args":["{{ip \"b\"}}"]},{"name":"b"}]}`,
		`{"if_newest":"7"}`, "\x0a\x02\x0a\x00", `{"units":[{"health":[{"http":{"body":"["}}]}]}`, `{"deadline":"1s","drain":"-1s"}`,
		`{"units":[{"image":{"file":"/a"},"args":["{{define \"x\"}}{{end}}","{{printf \"%9d\" 1}}","{{.IP}}"]}]}`,
	} {
		f.Add(int32(deploy), []byte(seed))
		f.Add(int32(fulmarv1.Kind_KIND_RETIRE), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, kind int32, body []byte) {
		m, err := messages.DecodeRequest(fulmarv1.Kind(kind), body)
		if err != nil {
			sentence(t, err)
			return
		}
		d, ok := m.(*fulmarv1.DeployRequest)
		if !ok {
			return
		}
		n, err := messages.Normalize("web", d)
		if err != nil {
			sentence(t, err)
			return
		}
		again, err := messages.Normalize("web", n)
		if err != nil {
			t.Fatalf("what was normalized is refused: %v", err)
		}
		if diff := cmp.Diff(n, again, protocmp.Transform()); diff != "" {
			t.Fatalf("normalized twice it differs (-once +twice):\n%s", diff)
		}
		body, err = proto.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		back, err := messages.DecodeRequest(deploy, body)
		if err != nil {
			t.Fatalf("what was normalized cannot be read: %v", err)
		}
		if diff := cmp.Diff(proto.Message(n), back, protocmp.Transform()); diff != "" {
			t.Fatalf("read back it differs (-want +got):\n%s", diff)
		}
	})
}

// sentence checks that an error is a refusal that a person can be shown.
func sentence(t *testing.T, err error) {
	t.Helper()
	if _, ok := messages.AsRefusal(err); !ok {
		t.Fatalf("%v is no refusal", err)
	}
	if s := err.Error(); s == "" || strings.ContainsAny(s, "\n\r\u00a0") || strings.Contains(s, "proto:") {
		t.Fatalf("%q is not one clear line", s)
	}
}

// TestAMessageThatLooksLikeJSONIsNone has a first unit of 123 bytes, so that its second byte is '{' after a line feed.
func TestAMessageThatLooksLikeJSONIsNone(t *testing.T) {
	want := &fulmarv1.DeployRequest{Units: []*fulmarv1.UnitSpec{{Name: "web", Args: []string{strings.Repeat("x", 116)}}}}
	body, err := proto.Marshal(want)
	if err != nil || string(body[:2]) != "\n{" {
		t.Fatalf("it begins with %q, %v", body[:2], err)
	}
	got, err := messages.DecodeRequest(deploy, body)
	if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
