package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: ${enum}."`
}

// Run prints the completion script of a shell: commands and flags as this version has them.
func (c *completionCmd) Run(e *env, model *kong.Application) error {
	nodes := map[string]*kong.Node{}
	collect(model.Node, "", nodes)
	var b strings.Builder
	switch c.Shell {
	case "bash":
		bashScript(&b, nodes)
	case "zsh":
		b.WriteString("#compdef fulmar\nautoload -U +X bashcompinit && bashcompinit\n")
		bashScript(&b, nodes)
	case "fish":
		fishScript(&b, nodes)
	}
	_, err := fmt.Fprint(e.out, b.String())
	return err
}

// collect gives every command by its path, as "network add"; the program itself is the empty one.
func collect(n *kong.Node, path string, nodes map[string]*kong.Node) {
	nodes[path] = n
	for _, c := range n.Children {
		collect(c, strings.TrimSpace(path+" "+c.Name), nodes)
	}
}

// words are what may follow a command.
func words(n *kong.Node) []string {
	var w []string
	for _, c := range n.Children {
		w = append(w, c.Name)
	}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			w = append(w, "--"+f.Name)
		}
	}
	return w
}

// bashScript writes what zsh can run too: there "path" is what PATH is, a bound of a slice is no expression, and compgen leaves it to
// zsh which of the words begin as what was typed.
func bashScript(b *strings.Builder, nodes map[string]*kong.Node) {
	paths := slices.Sorted(maps.Keys(nodes))
	b.WriteString("_fulmar() {\n  local at= list= word cur=\"${COMP_WORDS[COMP_CWORD]}\"\n  for word in \"${COMP_WORDS[@]:1:$((COMP_CWORD - 1))}\"; do\n    case \"$at $word\" in\n")
	for _, path := range paths[1:] {
		fmt.Fprintf(b, "      %q) at=%q ;;\n", parent(path)+" "+last(path), path)
	}
	b.WriteString("    esac\n  done\n  case \"$at\" in\n")
	for _, path := range paths {
		fmt.Fprintf(b, "    %q) list=%q ;;\n", path, strings.Join(words(nodes[path]), " "))
	}
	b.WriteString("  esac\n  COMPREPLY=()\n  for word in $list; do\n    case \"$word\" in \"$cur\"*) COMPREPLY+=(\"$word\") ;; esac\n  done\n")
	b.WriteString("  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- \"$cur\"))\n}\ncomplete -o filenames -F _fulmar fulmar\n")
}

func parent(path string) string {
	if i := strings.LastIndexByte(path, ' '); i >= 0 {
		return path[:i]
	}
	return ""
}

func last(path string) string { return path[strings.LastIndexByte(path, ' ')+1:] }

func fishScript(b *strings.Builder, nodes map[string]*kong.Node) {
	paths := slices.Sorted(maps.Keys(nodes))
	b.WriteString("function __fulmar_at\n  set -l at ''\n  for word in (commandline -opc)[2..-1]\n    switch \"$at $word\"\n")
	for _, path := range paths[1:] {
		fmt.Fprintf(b, "      case %s\n        set at %s\n", quoted(parent(path)+" "+last(path)), quoted(path))
	}
	b.WriteString("    end\n  end\n  test \"$at\" = \"$argv[1]\"\nend\n")
	for _, path := range paths {
		at := quoted("__fulmar_at '" + path + "'")
		for _, c := range nodes[path].Children { // and no files
			fmt.Fprintf(b, "complete -c fulmar -f -n %s -a %s -d %s\n", at, c.Name, quoted(c.Help))
		}
		for _, group := range nodes[path].AllFlags(true) {
			for _, f := range group {
				takes := ""
				if !f.IsBool() {
					takes = " -r"
				}
				fmt.Fprintf(b, "complete -c fulmar -n %s -l %s%s -d %s\n", at, f.Name, takes, quoted(f.Help))
			}
		}
	}
}

// quoted is a text as fish takes it.
func quoted(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
