package main

import (
	"strings"
	"testing"
)

func TestAnErrorInASpecSaysWhereItIs(t *testing.T) {
	for spec, want := range map[string]string{
		"unit:\n  - name: web\n": `spec -: unit: unknown field "unit"`,
		"units:\n  - name: web\n    image: {file: /a}\n  - name: ü\n    image: {file: /a}\n    port: []\n": `spec -: units[1].port: unknown field "port"`,
		"units:\n  - image: hello.spt\n":                 `spec -: units[0].image: field image is an object, but there is "hello.spt"`,
		"units:\n  - args: --ipv4\n":                     `spec -: units[0].args: field args is a list, but there is "--ipv4"`,
		"units:\n  - args: [a, {b: c}]\n":                `spec -: units[0].args[1]: `,
		"units:\n  - {ports: [{port: 1}, {port: x}]}\n":  `spec -: units[0].ports[1].port: invalid value for uint32 field port: "x"`,
		"units:\n  - memory: 32M\n":                      `spec -: units[0].memory: invalid value for uint32 field memory: "32M"`,
		"units: []\ndrain: 10\n":                         `spec -: drain: 10 is no duration: want "10s"`,
		"units: [{health: [{icmp: {}, interval: 5}]}]\n": `spec -: units[0].health[0].interval: 5 is no duration: want "5s"`,
		"":                                     `spec -: it has no units`,
		"- name: web\n":                        `spec -: it has no units`,
		"units:\n  - name: web\n   image: x\n": `spec -: yaml: line 2: `,
		`{"units":` + "\n" + `[{"name":"web","memory":"x"}]}`: `spec -: units[0].memory: `,
	} {
		_, err := readSpec("-", strings.NewReader(spec))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: got  %v\nwant %s", spec, err, want)
		}
	}
}

func TestASpecIsOneDocument(t *testing.T) {
	const one, two = "units: [{name: a, image: {file: /a}}]\n", "units: [{name: b, image: {file: /b}}]\n"
	for spec, good := range map[string]bool{
		one: true, "---\n" + one: true, one + "---\n": true, one + "...\n": true, "# of one\n---\n" + one + "---\n# no more\n": true,
		one + "---\n" + two: false, "---\n" + one + "---\n---\n" + two: false, one + "---\njust text\n": false,
		one + "---\n\tunits: x\n": false, one + "---\n{name: \n  - b: : c\n": false, one + "...\n" + two: false,
	} {
		r, err := readSpec("-", strings.NewReader(spec))
		if good && (err != nil || r.GetUnits()[0].GetName() != "a") {
			t.Errorf("%q: %v, %v", spec, r, err)
		}
		if !good && (err == nil || !strings.Contains(err.Error(), "spec -: it has more than one document")) {
			t.Errorf("%q: %v", spec, err)
		}
	}
}
