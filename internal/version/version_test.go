package version

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

func TestDescribe(t *testing.T) {
	build := func(version string, settings ...string) *debug.BuildInfo {
		info := &debug.BuildInfo{GoVersion: "go1.26.0", Main: debug.Module{Version: version}}
		for i := 0; i < len(settings); i += 2 {
			info.Settings = append(info.Settings, debug.BuildSetting{Key: settings[i], Value: settings[i+1]})
		}
		return info
	}
	for _, test := range []struct {
		release string
		build   *debug.BuildInfo
		want    string
	}{
		{"", build("v0.1.0", "vcs.revision", "1a2b3c", "vcs.modified", "false"), "deputy v0.1.0, commit 1a2b3c, go1.26.0"},
		{"v0.2.0", build("v0.1.0", "vcs.revision", "1a2b3c"), "deputy v0.2.0, commit 1a2b3c, go1.26.0"},
		{"", build("(devel)", "vcs.revision", "1a2b3c", "vcs.modified", "true"), "deputy (devel), commit 1a2b3c (modified), go1.26.0"},
		{"", build(""), "deputy unknown, commit unknown, go1.26.0"},
		{"v0.1.0", nil, "deputy v0.1.0, commit unknown, unknown"},
	} {
		if got := describe("deputy", test.release, test.build); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// TestReleaseBuild builds as RELEASE.md does, and asks each program for its version.
func TestReleaseBuild(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("make", "--silent", "build", "BIN="+bin, "VERSION=v9.8.7-test")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "MAKEFLAGS=") // not those of a make that runs this test
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, program := range []string{"deputy", "deputyd"} {
		out, err := exec.Command(filepath.Join(bin, program), "--version").CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), program+" v9.8.7-test, commit ") {
			t.Errorf("%v, %s", err, out)
		}
	}
}
