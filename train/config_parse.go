package train

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// UsageError is an error in what the user wrote: a configuration, a flag, the name of a folder. The program's exit
// status is 2 for these and 1 for all others.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// usage is a UsageError of two lines: what is wrong where, and what to do.
func usage(where, problem, advice string) error {
	if where != "" {
		where += ": "
	}
	return UsageError{fmt.Errorf("%s%s\n%s", where, problem, advice)}
}

// Parse makes a complete config from a YAML file's content, which may be empty, and from overrides "key=value", which
// come later and win. What neither names has the default: DefaultToy's if model.path is empty, Default's otherwise.
// The config is resolved and valid. Errors are UsageErrors with file, line and column, or the override at fault.
func Parse(name string, data []byte, overrides ...string) (Config, error) {
	root, err := document(name, data)
	if err != nil {
		return Config{}, err
	}
	p := parser{name: name, cfg: DefaultToy(), origins: map[string]string{}}
	if err := p.all(root, overrides); err != nil {
		return Config{}, err
	}
	if p.cfg.Model.Path != "" { // only now it is known which defaults were meant
		p.cfg = Default()
		if err := p.all(root, overrides); err != nil {
			return Config{}, err
		}
	}
	return p.finish()
}

// document is the mapping in a YAML file, nil if there is nothing in it.
func document(name string, data []byte) (*yaml.Node, error) {
	if err := refuseBinary(name, data); err != nil {
		return nil, err
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	var doc, second yaml.Node
	if err := loader.Load(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, notYAML(name, data, err)
	}
	switch err := loader.Load(&second); {
	case err == nil:
		return nil, usage(place(name, &second), "a second document; expected one", "remove the line --- or ... before it, or keep it in a file of its own")
	case !errors.Is(err, io.EOF):
		return nil, notYAML(name, data, err)
	}
	root := doc.Content[0]
	if isScalar(root, "!!null") {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, usage(place(name, root), shown(root)+" where the configuration begins; expected keys", `begin with a section, for example "train:", and below it "  lr: 1e-3"`)
	}
	return root, nil
}

// refuseBinary finds what no YAML file has and what its reader gives no place for.
func refuseBinary(name string, data []byte) error {
	line, column := 1, 1
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		if r == utf8.RuneError && size == 1 || unicode.IsControl(r) && !strings.ContainsRune("\t\n\r\u0085", r) {
			return usage(fmt.Sprintf("%s:%d:%d", name, line, column), fmt.Sprintf("byte %#02x; expected text in UTF-8", data[0]), "is this the configuration? save it as UTF-8 text")
		}
		column++
		if r == '\n' {
			line, column = line+1, 1
		}
		data = data[size:]
	}
	return nil
}

func notYAML(name string, data []byte, err error) error {
	var e *yaml.LoadError
	if !errors.As(err, &e) {
		return usage(name, "not YAML: "+err.Error(), "correct the file")
	}
	where := name
	if e.Mark.Line > 0 {
		where = fmt.Sprintf("%s:%d:%d", name, e.Mark.Line, e.Mark.Column)
	}
	problem := "not YAML: " + e.Message
	if e.ContextMsg != "" {
		problem += " " + e.ContextMsg
		if c := e.ContextMark; c.Line > 0 && c != e.Mark {
			problem += fmt.Sprintf(" that began at line %d, column %d", c.Line, c.Column)
		}
	}
	lines := strings.Split(string(data), "\n")
	if i := e.Mark.Line - 1; 0 <= i && i < len(lines) {
		if indent, _, ok := strings.Cut(lines[i], "\t"); ok && strings.TrimSpace(indent) == "" {
			return usage(where, problem, "indent with spaces instead of tabs")
		}
	}
	return usage(where, problem, "check the quotes, brackets and indentation there and on the line before")
}

func place(name string, n *yaml.Node) string { return fmt.Sprintf("%s:%d:%d", name, n.Line, n.Column) }

// shown is a node's content for a message.
func shown(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "a group of keys"
	case n.Kind != yaml.ScalarNode:
		return "an alias"
	case n.ShortTag() == "!!null", n.ShortTag() != "!!str" && n.Value == "":
		return "empty"
	case n.ShortTag() == "!!str":
		return strconv.Quote(shorten(n.Value))
	}
	return oneLine(n.Value)
}

func shorten(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// oneLine is text as a user wrote it, shortened, with what cannot be printed escaped.
func oneLine(s string) string {
	s = shorten(s)
	if q := strconv.Quote(s); strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 || !utf8.ValidString(s) {
		return q[1 : len(q)-1]
	}
	return s
}

// parser fills in cfg and remembers where each key got its value.
type parser struct {
	name    string
	cfg     Config
	origins map[string]string
}

func (p *parser) all(root *yaml.Node, overrides []string) error {
	if root != nil {
		if err := p.mapping("", root); err != nil {
			return err
		}
	}
	for _, o := range overrides {
		if err := p.override(o); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) finish() (Config, error) {
	p.cfg.Resolve()
	if f := p.cfg.fault(); f != nil {
		where := p.name
		for _, key := range f.keys {
			if origin, ok := p.origins[key]; ok {
				where = origin
				break
			}
		}
		return Config{}, usage(where, f.problem, f.advice)
	}
	return p.cfg, nil
}

// mapping assigns the keys below a section, or at the top level.
func (p *parser) mapping(section string, n *yaml.Node) error {
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			return usage(place(p.name, k), shown(k)+" as a key; expected a name", "the config.yaml of any run has all keys, with comments")
		}
		key := k.Value
		if section != "" {
			key = section + "." + k.Value
		}
		if first := seen[key]; first != nil {
			return usage(place(p.name, k), fmt.Sprintf("%s a second time; the first is on line %d", shorten(key), first.Line), "keep one of them")
		}
		seen[key] = k
		if err := p.entry(key, k, v); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) entry(key string, k, v *yaml.Node) error {
	if v.Kind == yaml.AliasNode {
		v = v.Alias
	}
	fields := p.cfg.fields()
	if isSection(fields, key) {
		switch {
		case v.Kind == yaml.MappingNode:
			return p.mapping(key, v)
		case isScalar(v, "!!null"): // all its keys are commented out
			return nil
		}
		return usage(place(p.name, v), fmt.Sprintf("%s is %s; expected keys below it", key, shown(v)), fmt.Sprintf("write them on lines of their own, indented, for example %q", "  "+example(fields, key)))
	}
	// A dot makes no section in YAML: "train.lr: 1" at the top level is a key that does not exist.
	section, name := splitKey(key)
	f, ok := lookup(fields, key)
	switch {
	case ok && section != "" && k.Value == key:
		return usage(place(p.name, k), "unknown key "+strconv.Quote(key), fmt.Sprintf(`write "%s:" on a line of its own and below it "  %s: …"`, section, name))
	case !ok:
		return usage(place(p.name, k), "unknown key "+strconv.Quote(shorten(key)), suggestion(fields, key))
	}
	return p.assign(f, v, place(p.name, k), func(bad *yaml.Node) string { return place(p.name, bad) })
}

func (p *parser) override(o string) error {
	where := "setting " + oneLine(o)
	key, value, ok := strings.Cut(o, "=")
	if !ok {
		return usage(where, "no =; expected key=value", "for example train.lr=1e-4")
	}
	fields := p.cfg.fields()
	f, ok := lookup(fields, key)
	if !ok {
		return usage(where, "unknown key "+strconv.Quote(shorten(key)), suggestion(fields, key))
	}
	return p.assign(f, f.value.typed(value), where, func(*yaml.Node) string { return where })
}

// assign stores a value that was found at origin; where locates what does not fit.
func (p *parser) assign(f field, v *yaml.Node, origin string, where func(*yaml.Node) string) error {
	p.origins[f.key] = origin
	bad := f.value.decode(v)
	if bad == nil {
		return nil
	}
	verb := "is"
	if bad != v {
		verb = "has"
	}
	return usage(where(bad), fmt.Sprintf("%s %s %s; expected %s", f.key, verb, shown(bad), f.value.want()), p.defaultAdvice(f.key))
}

func (p *parser) defaultAdvice(key string) string {
	defaults := DefaultToy()
	if p.cfg.Model.Path != "" {
		defaults = Default()
	}
	f, _ := lookup(defaults.fields(), key)
	return fmt.Sprintf("give it such a value, or leave it out for the default, %s", f.value.encode())
}

func isSection(fields []field, name string) bool { return example(fields, name) != "" }

// example is a line of a section, "" if there is no such section.
func example(fields []field, section string) string {
	for _, f := range fields {
		if s, name := splitKey(f.key); s == section && s != "" {
			return name + ": " + f.value.encode()
		}
	}
	return ""
}
