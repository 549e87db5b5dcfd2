package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// completes are programs of shells that load the script on standard input and complete the words of their arguments.
var completes = map[string]string{
	"bash": `eval "$(cat)"; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _fulmar; printf '%s\n' "${COMPREPLY[@]}"`,
	// In the mode in which zsh's bashcompinit calls functions of bash.
	"zsh":  `autoload -U compinit; compinit -u -D; eval "$(cat)"; emulate -L sh; setopt kshglob noshglob braceexpand; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _fulmar; printf '%s\n' "${COMPREPLY[@]}"`,
	"fish": `source; complete -C "$argv" | string replace -r '\t.*' ''; true`,
}

// TestCompletionCompletes asks each shell.
func TestCompletionCompletes(t *testing.T) {
	for shell := range completes {
		t.Run(shell, func(t *testing.T) { completesIn(t, shell) })
	}
}

func completesIn(t *testing.T, shell string) {
	path, err := exec.LookPath(shell)
	if err != nil {
		t.Skip("no such shell here:", err)
	}
	w := newWorld(t)
	_, script, _ := w.run("completion", shell)
	for line, want := range map[string][]string{
		"fulmar netw":                    {"network"},
		"fulmar network r":               {"rm"},
		"fulmar --json network a":        {"add"},
		"fulmar network add --br":        {"--bridge"},
		"fulmar albatross policy a":      {"add"},
		"fulmar deploy web --rest":       {"--restart"},
		"fulmar deploy network --rest":   {"--restart"},
		"fulmar deploy web completion_t": {"completion_test.go"},
		"fulmar watch p":                 {"pause"},
	} {
		args := map[string][]string{
			"bash": {"--norc", "-c", completes[shell], "bash"}, "zsh": {"-f", "-c", completes[shell], "zsh"}, "fish": {"--no-config", "-c", completes[shell], "--"},
		}[shell]
		cmd := exec.CommandContext(t.Context(), path, append(args, strings.Fields(line)...)...)
		cmd.Stdin = strings.NewReader(script)
		out, err := cmd.CombinedOutput()
		typed := strings.Fields(line)
		got := slices.DeleteFunc(strings.Fields(string(out)), func(s string) bool { return !strings.HasPrefix(s, typed[len(typed)-1]) }) // zsh does that itself
		if err != nil || !slices.Equal(want, got) {
			t.Errorf("completes %q by %q, want %q (%v)", line, got, want, err)
		}
	}
}
