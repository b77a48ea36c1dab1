package main

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"loratrain/checkpoints"
)

// checkJSON is checkFile for --json, which may be standard output.
func checkJSON(path string) error {
	if path == "-" {
		return nil
	}
	return checkFile("json", path)
}

// checkFile refuses a flag's file that cannot be written before anything is computed for it. None, "", is none to write.
func checkFile(flag, path string) error {
	if path == "" {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return usagef("name a file in it", "--%s %s: a folder, expected a file", flag, path)
	}
	dir := filepath.Dir(path)
	if info, err := os.Stat(dir); err != nil {
		return usagef("make the folder first, or name another file", "--%s %s: %w", flag, path, located(err))
	} else if !info.IsDir() {
		return usagef("name another file", "--%s %s: %s is no folder", flag, path, dir)
	}
	return nil
}

// answer writes what was found: as a table for people, and as JSON to path, which in place of the table may be standard
// output, "-". If one place fails the other still gets it.
func answer(cmd *cobra.Command, path string, v any, table string) error {
	w := cmd.OutOrStdout()
	if path == "-" {
		var line strings.Builder
		if err := printJSON(&line, v); err != nil {
			return err
		}
		return printText(w, line.String())
	}
	var saved error
	if path != "" {
		data, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			return err
		}
		saved = checkpoints.WriteFile(path, append(data, '\n'))
	}
	return cmp.Or(printText(w, table), saved)
}
