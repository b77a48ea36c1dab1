package train

import (
	"fmt"
	"strings"
)

// Marshal is the complete config as YAML with comments: what a run's config.yaml holds. Parsing it gives the same
// config, whatever the defaults are by then.
func (c *Config) Marshal() []byte {
	var b strings.Builder
	b.WriteString("# Every key of the configuration. On the command line: --set train.lr=1e-4\n")
	current := ""
	for _, f := range c.fields() {
		section, name := splitKey(f.key)
		if section != current {
			b.WriteByte('\n')
			if section != "" {
				fmt.Fprintf(&b, "%s:\n", section)
			}
			current = section
		}
		indent := ""
		if section != "" {
			indent = "  "
		}
		fmt.Fprintf(&b, "%s# %s\n%s%s: %s\n", indent, f.doc, indent, name, f.value.encode())
	}
	return []byte(b.String())
}

// CheckResume refuses a config that differs from that of the run to be resumed in a key that decides what is learned.
// Other paths are allowed, since the run's digests tell whether they lead to the same model and data.
func CheckResume(run, now Config) error {
	was, is := run.fields(), now.fields()
	for i, f := range was {
		if before, after := f.value.encode(), is[i].value.encode(); !f.resumes && before != after {
			return usage("", fmt.Sprintf("%s is %s, but the run to be resumed has %s", f.key, after, before),
				fmt.Sprintf("leave %s as it was, or start another run; what may change is %s", f.key, strings.Join(resumable(was), ", ")))
		}
	}
	return nil
}

// decisive are the keys that decide what is learned, and their values as Marshal writes them.
func (c *Config) decisive() map[string]string {
	values := map[string]string{}
	for _, f := range c.fields() {
		if !f.resumes {
			values[f.key] = f.value.encode()
		}
	}
	return values
}

func resumable(fields []field) []string {
	var keys []string
	for _, f := range fields {
		if f.resumes {
			keys = append(keys, f.key)
		}
	}
	return keys
}
