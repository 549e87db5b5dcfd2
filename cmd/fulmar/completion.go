package main

import (
	"fmt"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: ${enum}."`
}

// Run prints the completion script of a shell: commands and flags as this version has them.
func (c *completionCmd) Run(e *env, model *kong.Application) error {
	words := map[string][]string{}
	collect(model.Node, "", words)
	var b strings.Builder
	switch c.Shell {
	case "bash":
		bashScript(&b, words)
	case "zsh":
		b.WriteString("#compdef fulmar\nautoload -U +X bashcompinit && bashcompinit\n")
		bashScript(&b, words)
	case "fish":
		fishScript(&b, model.Node)
	}
	_, err := fmt.Fprint(e.out, b.String())
	return err
}

// collect gives, by the path of a command, the words that may follow it.
func collect(n *kong.Node, path string, words map[string][]string) {
	var w []string
	for _, c := range n.Children {
		w = append(w, c.Name)
		collect(c, strings.TrimSpace(path+" "+c.Name), words)
	}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			w = append(w, "--"+f.Name)
		}
	}
	words[path] = w
}

func bashScript(b *strings.Builder, words map[string][]string) {
	b.WriteString("_fulmar() {\n  local path= word cur=${COMP_WORDS[COMP_CWORD]}\n  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n    case \"$path $word\" in\n")
	for path := range words {
		if path != "" {
			fmt.Fprintf(b, "      %q) path=%q ;;\n", parent(path)+" "+last(path), path)
		}
	}
	b.WriteString("    esac\n  done\n  case \"$path\" in\n")
	for path, w := range words {
		fmt.Fprintf(b, "    %q) COMPREPLY=($(compgen -W %q -- \"$cur\")) ;;\n", path, strings.Join(w, " "))
	}
	b.WriteString("  esac\n  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- \"$cur\"))\n}\ncomplete -o filenames -F _fulmar fulmar\n")
}

func parent(path string) string {
	if i := strings.LastIndexByte(path, ' '); i >= 0 {
		return path[:i]
	}
	return ""
}

func last(path string) string { return path[strings.LastIndexByte(path, ' ')+1:] }

func fishScript(b *strings.Builder, root *kong.Node) {
	var commands []string
	for _, c := range root.Children {
		commands = append(commands, c.Name)
	}
	for _, c := range root.Children {
		fmt.Fprintf(b, "complete -c fulmar -n 'not __fish_seen_subcommand_from %s' -a %s -d %q\n", strings.Join(commands, " "), c.Name, c.Help)
		for _, s := range c.Children {
			fmt.Fprintf(b, "complete -c fulmar -n '__fish_seen_subcommand_from %s' -a %s -d %q\n", c.Name, s.Name, s.Help)
		}
		for _, group := range c.AllFlags(true) {
			for _, f := range group {
				fmt.Fprintf(b, "complete -c fulmar -n '__fish_seen_subcommand_from %s' -l %s -d %q\n", c.Name, f.Name, f.Help)
			}
		}
	}
}
