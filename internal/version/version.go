// Package version describes the build of a program.
package version

import (
	"cmp"
	"fmt"
	"runtime/debug"
)

// release is the version that a release build sets with
// -ldflags "-X deputy.example/deputy/internal/version.release=v0.1.0". Without it, the version is
// that of the main module, which the go command derives from the tag or the commit.
var release string

// Of returns the line that --version prints: the name of the program, its version, the commit and
// the version of Go. A part that the build did not record reads "unknown".
func Of(program string) string {
	build, _ := debug.ReadBuildInfo()
	return describe(program, release, build)
}

func describe(program, release string, build *debug.BuildInfo) string {
	if build == nil {
		build = &debug.BuildInfo{}
	}
	var commit, modified string
	for _, setting := range build.Settings {
		switch {
		case setting.Key == "vcs.revision":
			commit = setting.Value
		case setting.Key == "vcs.modified" && setting.Value == "true":
			modified = " (modified)"
		}
	}
	return fmt.Sprintf("%s %s, commit %s%s, %s", program,
		cmp.Or(release, build.Main.Version, "unknown"), cmp.Or(commit, "unknown"), modified, cmp.Or(build.GoVersion, "unknown"))
}
