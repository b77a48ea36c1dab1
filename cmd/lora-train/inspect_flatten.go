package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// flatten is any JSON value as rows of a table: the way to each leaf, and the leaf. Lists of plain values are one leaf, lists
// of objects go by their "task" or their number.
func flatten(way string, v any) [][]string {
	data, err := json.Marshal(v)
	if err != nil {
		return [][]string{{way, err.Error()}}
	}
	var plain any
	if err := json.Unmarshal(data, &plain); err != nil {
		return [][]string{{way, err.Error()}}
	}
	return flattenPlain(way, plain)
}

func flattenPlain(way string, v any) [][]string {
	var rows [][]string
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			rows = append(rows, flattenPlain(join(way, key), v[key])...)
		}
	case []any:
		if leaf, ok := plainList(v); ok {
			return [][]string{{way, leaf}}
		}
		for i, item := range v {
			name := fmt.Sprint(i)
			if object, ok := item.(map[string]any); ok && object["task"] != nil {
				name = fmt.Sprint(object["task"])
				object = maps.Clone(object)
				delete(object, "task")
				item = object
			}
			rows = append(rows, flattenPlain(join(way, name), item)...)
		}
	case nil:
	default:
		if v != "" {
			rows = append(rows, []string{way, leafText(v)})
		}
	}
	return rows
}

func join(way, key string) string {
	if way == "" {
		return key
	}
	return way + " " + key
}

// plainList is a list without lists or objects on one line.
func plainList(list []any) (string, bool) {
	parts := make([]string, len(list))
	for i, item := range list {
		switch item.(type) {
		case map[string]any, []any:
			return "", false
		}
		parts[i] = leafText(item)
	}
	return shorten(strings.Join(parts, " "), 100), true
}

func leafText(v any) string {
	if f, ok := v.(float64); ok {
		if f == float64(int64(f)) {
			return fmt.Sprint(int64(f))
		}
		return fmt.Sprintf("%.4g", f)
	}
	return shorten(strings.ReplaceAll(fmt.Sprint(v), "\n", "↵"), 100)
}
