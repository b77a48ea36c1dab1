package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"loratrain/train"
)

// The exit statuses.
const (
	statusDone   = 0
	statusFailed = 1
	statusUsage  = 2
)

// execute runs the command that args name, shows its error and returns the exit status. The first interrupt ends the
// command's context, the second the process.
func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	root := newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return statusDone
	}
	status := statusUsage // cobra's own errors are all about the command line
	if ran, ok := errors.AsType[runError](err); ok {
		err, status = ran.error, ran.status()
	} else if !strings.Contains(err.Error(), "\n") {
		err = fmt.Errorf("%w\n%s --help shows how it is used", err, cmd.CommandPath())
	}
	printError(root.ErrOrStderr(), err)
	return status
}

// newRoot is the command line with all its commands.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "lora-train COMMAND",
		Short: "Train, evaluate, export and decode switch adapters",
		Long: `lora-train trains switch adapters: a frozen model of the Llama family gets experts of low rank beside
its linear layers, and a router chooses two of them for each token.

Without a model it uses the one that is part of the program, a toy that needs no download.`,
		Example: `  lora-train run                                   train, measure and export on the embedded model and task
  lora-train inspect                               what the embedded model is
  lora-train tokenize Anna lives in Denby.         text to ids
  lora-train generate --prompt "Anna lives in"     text from the embedded model
  lora-train generate --model SmolLM2-135M-Instruct --adapter runs/my-run --prompt "Question: …"`,
		Version:           version(),
		Args:              knownCommand,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(newHelpCommand())
	root.PersistentFlags().BoolP("quiet", "q", false, "say nothing on standard error but errors")
	root.AddCommand(newRunCommand(), newEvalCommand(), newExportCommand(), newGenerateCommand(), newBenchCommand(), newTokenizeCommand(),
		newInspectCommand())
	cobra.EnableCommandSorting = false
	for _, cmd := range root.Commands() {
		markErrors(cmd)
	}
	return root
}

// usageTemplate is cobra's, shorter.
const usageTemplate = `Usage:
  {{.UseLine}}
{{- if .HasExample}}

Examples:
{{.Example}}
{{- end}}
{{- if .HasAvailableSubCommands}}

Commands:
{{- range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- end}}
{{- if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasAvailableInheritedFlags}}

Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasAvailableSubCommands}}

"{{.Root.Name}} help{{if .HasParent}} {{.Name}}{{end}} COMMAND" shows how a command is used.
{{- end}}
`

// version is the program's, and what it was built with.
func version() string {
	info := train.NewRunInfo()
	return fmt.Sprintf("%s, %s, %s", info.Program, info.Go, info.Platform)
}

// quiet says whether the user wants nothing but errors on standard error.
func quiet(cmd *cobra.Command) bool {
	q, err := cmd.Flags().GetBool("quiet")
	return err == nil && q
}

// runError is the error of a command that was understood and ran.
type runError struct{ error }

func (e runError) Unwrap() error { return e.error }

func (e runError) status() int {
	if _, ok := errors.AsType[train.UsageError](e.error); ok {
		return statusUsage
	}
	return statusFailed
}

// markErrors tells a command's own errors, and those of its commands, from those that cobra makes before it runs.
func markErrors(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		markErrors(sub)
	}
	run := cmd.RunE
	if run == nil {
		return
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := run(cmd, args); err != nil {
			return runError{err}
		}
		return nil
	}
}

// usagef is a UsageError of two lines: what is wrong, and what to do.
func usagef(advice, format string, args ...any) error {
	return train.UsageError{Err: failf(advice, format, args...)}
}

// failf is an error of two lines: what is wrong, and what to do.
func failf(advice, format string, args ...any) error {
	return fmt.Errorf(format+"\n%s", append(args, advice)...)
}

// knownCommand is the Args of the root and of groups of commands: whatever is left there is the name of no command.
func knownCommand(group *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	advice := group.CommandPath() + " --help lists the commands"
	group.SuggestionsMinimumDistance = 2
	if names := group.SuggestionsFor(args[0]); len(names) > 0 {
		advice = fmt.Sprintf("did you mean %s?", strings.Join(names, " or "))
	}
	return usagef(advice, "unknown command %q", args[0])
}

// noArguments is the Args of a command that takes none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usagef(cmd.CommandPath()+" --help shows what it takes", "unexpected argument %q", args[0])
}

// newHelpCommand is cobra's, but for a topic that does not exist, which is an error.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show how a command is used",
		RunE: func(cmd *cobra.Command, args []string) error {
			topic, rest, err := cmd.Root().Find(args)
			if err == nil && len(rest) > 0 {
				group := cmd.Root()
				if topic.HasSubCommands() {
					group = topic
				}
				err = knownCommand(group, rest)
			}
			if err != nil {
				return err
			}
			topic.InitDefaultHelpFlag()
			return topic.Help()
		},
	}
}

// expected describes the values of a flag's type.
var expected = map[string]string{
	"int": "a whole number", "uint64": "a whole number, 0 or more", "float64": "a number", "bool": "true or false",
}

// flagError says in our words what pflag found wrong.
func flagError(cmd *cobra.Command, err error) error {
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 { // its flags are unknown because the command is
		return knownCommand(cmd, args)
	}
	advice := cmd.CommandPath() + " --help lists the flags"
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		f := e.GetFlag()
		if what, ok := expected[f.Value.Type()]; ok {
			return usagef(fmt.Sprintf("--%s: %s", f.Name, f.Usage), "--%s %s: expected %s", f.Name, e.GetValue(), what)
		}
	}
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok && e.GetSpecifiedShortnames() == "" {
		return usagef(advice, "unknown flag --%s", e.GetSpecifiedName())
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok && e.GetSpecifiedShortnames() == "" {
		f := e.GetFlag()
		return usagef(fmt.Sprintf("--%s: %s", f.Name, f.Usage), "--%s: expected a value after it", f.Name)
	}
	return usagef(advice, "%w", err)
}
