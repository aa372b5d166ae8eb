package server

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// document is a configuration file that is being read: the line of each path, and the mistakes so
// far. The YAML library parses the text. This package decides which keys there are and what they
// may hold, because the library stops at the first mistake, reads 010 as a number and null as
// nothing.
type document struct {
	lines      map[string]int // path of a key or an element → its line
	problems   problems
	unreadable bool // not a YAML document: a missing key is then no mistake of its own
}

// decode reads text into the struct that config points to, and reports every mistake it meets.
func (d *document) decode(text []byte, config any) {
	file, err := parser.ParseBytes(text, 0)
	var located yaml.Error
	d.unreadable = true
	switch {
	case errors.As(err, &located):
		line := 0
		if at := located.GetToken(); at != nil && at.Position != nil {
			line = at.Position.Line
		}
		// The library's longer form quotes the lines around, which may hold secrets.
		d.problems = append(d.problems, problem{line: line, message: "is not YAML: " + located.GetMessage()})
	case err != nil:
		d.problems = append(d.problems, problem{message: "is not YAML"})
	case len(file.Docs) != 1 || file.Docs[0].Body == nil:
		d.problems = append(d.problems, problem{message: "must hold exactly one YAML document"})
	default:
		d.unreadable = false
		d.value("", file.Docs[0].Body, reflect.ValueOf(config).Elem())
	}
}

func (d *document) refuse(path string, node ast.Node, format string, args ...any) {
	d.problems = append(d.problems, problem{path: path, line: lineOf(node), message: fmt.Sprintf(format, args...)})
}

func lineOf(node ast.Node) int {
	if at := node.GetToken(); at != nil && at.Position != nil {
		return at.Position.Line
	}
	return 0
}

func (d *document) value(path string, node ast.Node, into reflect.Value) {
	switch node.(type) {
	case *ast.NullNode:
		d.refuse(path, node, "is empty: give it a value or leave it out")
		return
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.refuse(path, node, "anchors, aliases, merge keys and tags are not read: write the value itself")
		return
	}
	switch {
	case into.Type() == reflect.TypeFor[time.Duration]():
		d.duration(path, node, into)
	case into.Kind() == reflect.Pointer:
		into.Set(reflect.New(into.Type().Elem()))
		d.value(path, node, into.Elem())
	case into.Kind() == reflect.Struct:
		d.section(path, node, into)
	case into.Kind() == reflect.Map:
		d.names(path, node, into)
	case into.Kind() == reflect.Slice:
		d.list(path, node, into)
	default:
		d.scalar(path, node, into)
	}
}

// section reads the keys of a struct. Only the keys that its fields name in yaml tags are
// permitted.
func (d *document) section(path string, node ast.Node, into reflect.Value) {
	entries, ok := d.entries(path, node)
	if !ok {
		return
	}
	fields := make(map[string]reflect.Value)
	var known []string
	for i := range into.NumField() {
		if key, _, _ := strings.Cut(into.Type().Field(i).Tag.Get("yaml"), ","); key != "" && key != "-" {
			fields[key] = into.Field(i)
			known = append(known, key)
		}
	}
	for _, e := range entries {
		field, there := fields[e.key]
		if !there {
			d.refuse(join(path, e.key), e.node, "is not a key that is known here: %s", strings.Join(known, ", "))
			continue
		}
		d.value(join(path, e.key), e.value, field)
	}
}

// names reads a map whose keys the operator chooses.
func (d *document) names(path string, node ast.Node, into reflect.Value) {
	entries, ok := d.entries(path, node)
	if !ok {
		return
	}
	into.Set(reflect.MakeMap(into.Type()))
	for _, e := range entries {
		value := reflect.New(into.Type().Elem()).Elem()
		d.value(join(path, e.key), e.value, value)
		into.SetMapIndex(reflect.ValueOf(e.key).Convert(into.Type().Key()), value)
	}
}

func (d *document) list(path string, node ast.Node, into reflect.Value) {
	sequence, ok := node.(*ast.SequenceNode)
	if !ok {
		d.refuse(path, node, "must be a list")
		return
	}
	into.Set(reflect.MakeSlice(into.Type(), len(sequence.Values), len(sequence.Values)))
	for i, element := range sequence.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.lines[at] = lineOf(firstOf(element))
		d.value(at, element, into.Index(i))
	}
}

// firstOf returns the node at which an element begins for a reader: the token of a mapping is its
// first colon.
func firstOf(node ast.Node) ast.Node {
	switch n := node.(type) {
	case *ast.MappingNode:
		if len(n.Values) > 0 {
			return n.Values[0].Key
		}
	case *ast.MappingValueNode:
		return n.Key
	}
	return node
}

type entry struct {
	key   string
	node  ast.Node // of the key
	value ast.Node
}

func (d *document) entries(path string, node ast.Node) ([]entry, bool) {
	var pairs []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		d.refuse(path, node, "must be a section of keys and values")
		return nil, false
	}
	var entries []entry
	for _, pair := range pairs {
		key, isText := pair.Key.(*ast.StringNode)
		if !isText {
			d.refuse(path, pair.Key, "has a key that is not text: put it in quotes")
			continue
		}
		if slices.ContainsFunc(entries, func(e entry) bool { return e.key == key.Value }) {
			d.refuse(join(path, key.Value), key, "is given twice: keep one")
			continue
		}
		d.lines[join(path, key.Value)] = lineOf(key)
		entries = append(entries, entry{key.Value, key, pair.Value})
	}
	return entries, true
}

func (d *document) scalar(path string, node ast.Node, into reflect.Value) {
	switch into.Kind() {
	case reflect.String:
		if text, ok := textOf(node); ok {
			into.SetString(text)
			return
		}
		d.refuse(path, node, "must be text: put it in quotes")
	case reflect.Bool:
		if b, ok := node.(*ast.BoolNode); ok {
			into.SetBool(b.Value)
			return
		}
		d.refuse(path, node, "must be true or false")
	case reflect.Int, reflect.Int64:
		// The token, not the node's value: 010 would be eight.
		var n int64
		if i, ok := node.(*ast.IntegerNode); ok {
			if _, err := fmt.Sscanf(i.Token.Value, "%d", &n); err == nil && n != 0 && fmt.Sprint(n) == i.Token.Value {
				into.SetInt(n)
				return
			}
		}
		d.refuse(path, node, "must be a whole number in plain digits and not 0: leave it out for the default")
	default:
		d.refuse(path, node, "cannot be set in a file")
	}
}

func textOf(node ast.Node) (string, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	}
	return "", false
}

func (d *document) duration(path string, node ast.Node, into reflect.Value) {
	if text, ok := textOf(node); ok {
		if v, err := time.ParseDuration(text); err == nil && v != 0 {
			into.SetInt(int64(v))
			return
		}
	}
	d.refuse(path, node, "must be a duration with its unit, such as 500ms, 30s, 15m or 1h, and not 0: leave it out for the default")
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// line returns the line of a path, or of what would hold it: a missing key has the line of its
// section.
func (d *document) line(path string) int {
	for path != "" {
		if line, there := d.lines[path]; there {
			return line
		}
		path = path[:max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['), 0)]
	}
	return 0
}

// problem is one mistake: where it is, what it is, and what to write instead.
type problem struct {
	path    string
	line    int // 0: not known
	message string
}

// problems holds every mistake of a configuration, as an error.
type problems []problem

func (p *problems) add(path, format string, args ...any) {
	*p = append(*p, problem{path: path, message: fmt.Sprintf(format, args...)})
}

// Error puts each problem on a line of its own, in the order of the file.
func (p problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		var b strings.Builder
		if one.line > 0 {
			fmt.Fprintf(&b, "line %d: ", one.line)
		}
		if one.path != "" {
			b.WriteString(one.path + ": ")
		}
		b.WriteString(one.message)
		lines[i] = b.String()
	}
	return strings.Join(lines, "\n")
}

// err returns p as an error, nil if there are none.
func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}
