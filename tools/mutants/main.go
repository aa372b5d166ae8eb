// Command mutants is the negative control of the tests: it removes one protection of the source at a time and requires
// the test that guards it to fail.
//
// Each row of the tables in this directory names a file, a text that occurs in it exactly once, what replaces that text,
// and the test that must fail. The replacement is applied with `go test -overlay`, so no file changes and production code
// holds no switch. A row whose text does not occur exactly once fails, and so does a mutant that survives its test.
//
// Run it from the root of the repository:
//
//	go run -C tools ./mutants                      every mutant
//	go run -C tools ./mutants -run horizon         those whose name matches
//	go run -C tools ./mutants -sample 10 -base REV ten of them, and those in files that changed since REV
//
// With -sample the number of rows is bounded by -most, however many files a change touches. The output names the number
// of rows of changed files that were left out.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// mutant is one protection and the test that holds it in place.
type mutant struct {
	name string // unique, in kebab-case
	file string // from the root of the repository
	old  string // occurs exactly once in file
	new  string // what replaces it
	pkg  string // directory of the test's package, from the root of the repository
	test string // name of the test that must fail
}

func main() {
	run := flag.String("run", "", "only mutants whose name matches this regular expression")
	sample := flag.Int("sample", 0, "only this many mutants, always the same ones; 0: all")
	base := flag.String("base", "", "with -sample: also the mutants of files that changed since this revision")
	most := flag.Int("most", 40, "with -sample: at most this many mutants in all")
	parallel := flag.Int("p", 2, "number of mutants that run at a time")
	list := flag.Bool("list", false, "print the names, and end")
	flag.Parse()
	root, err := filepath.Abs(rootOf("."))
	if err == nil {
		err = check(root, all())
	}
	var chosen []mutant
	var left int
	if err == nil {
		chosen, left, err = choose(root, all(), *run, *sample, *most, *base)
	}
	if err == nil && *list {
		for _, m := range chosen {
			fmt.Println(m.name)
		}
		return
	}
	if err == nil {
		if left > 0 {
			fmt.Printf("mutants: %d more rows of changed files are left to make mutants\n", left)
		}
		err = killAll(root, chosen, max(1, *parallel))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// all is every table.
func all() []mutant {
	return slices.Concat(
		coreMutants, timeMutants, forkMutants, containMutants, transportMutants, smallMutants, consoleMutants, sdkMutants, houseMutants, ledgerMutants, exchangeMutants, commandMutants,
		storeMutants, tokenMutants,
	)
}

// rootOf climbs to the directory that holds this program's module.
func rootOf(dir string) string {
	for range 4 {
		if _, err := os.Stat(filepath.Join(dir, "buf.yaml")); err == nil {
			return dir
		}
		dir = filepath.Join(dir, "..")
	}
	return dir
}

// check refuses tables in which a row does not apply.
func check(root string, mutants []mutant) error {
	var faults []error
	seen := make(map[string]bool)
	for _, m := range mutants {
		if seen[m.name] {
			faults = append(faults, fmt.Errorf("%s: two rows have this name", m.name))
		}
		seen[m.name] = true
		if _, err := m.mutate(root); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", m.name, err))
		}
	}
	return errors.Join(faults...)
}

// mutate returns the source of the file with the replacement in it.
func (m mutant) mutate(root string) ([]byte, error) {
	source, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		return nil, err
	}
	if n := bytes.Count(source, []byte(m.old)); n != 1 {
		return nil, fmt.Errorf("%s: old text occurs %d times, not once", m.file, n)
	}
	return bytes.Replace(source, []byte(m.old), []byte(m.new), 1), nil
}

// choose picks the mutants to run: all, those that match, or a fixed sample and those of changed files. left counts the
// rows of changed files that are more than most allows. Which of them run is fixed by their names.
func choose(root string, mutants []mutant, pattern string, sample, most int, base string) (chosen []mutant, left int, err error) {
	match, err := regexp.Compile(pattern)
	if err != nil {
		return nil, 0, fmt.Errorf("-run: %w", err)
	}
	mutants = slices.DeleteFunc(slices.Clone(mutants), func(m mutant) bool { return !match.MatchString(m.name) })
	if len(mutants) == 0 {
		return nil, 0, fmt.Errorf("-run: no mutant matches %q", pattern)
	}
	if sample > 0 && sample < len(mutants) {
		changed, err := changedSince(root, base)
		if err != nil {
			return nil, 0, err
		}
		mutants, left = sampled(mutants, sample, max(sample, most), changed)
	}
	// Neighbors share what is built: a mutant of the same file differs in one package and in those above it.
	slices.SortFunc(mutants, func(a, b mutant) int {
		return cmp.Or(strings.Compare(a.pkg, b.pkg), strings.Compare(a.file, b.file), strings.Compare(a.test, b.test))
	})
	return mutants, left, nil
}

// sampled is the first rows by digest, then those of changed files, at most as many as most allows.
func sampled(mutants []mutant, sample, most int, changed []string) (chosen []mutant, left int) {
	slices.SortFunc(mutants, func(a, b mutant) int { return strings.Compare(digest(a.name), digest(b.name)) })
	chosen = slices.Clone(mutants[:sample])
	for _, m := range mutants[sample:] {
		switch {
		case !slices.Contains(changed, m.file):
		case len(chosen) < most:
			chosen = append(chosen, m)
		default:
			left++
		}
	}
	return chosen, left
}

// digest orders names without regard to their alphabet, so that a sample takes from every table.
func digest(name string) string {
	h := fnv.New64a()
	h.Write([]byte(name))
	return fmt.Sprintf("%016x", h.Sum64())
}

func changedSince(root, base string) ([]string, error) {
	if base == "" {
		return nil, nil
	}
	cmd := exec.Command("git", "diff", "--name-only", base)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git diff %s: %w", base, err)
	}
	return strings.Fields(string(out)), nil
}

// killAll runs each mutant's test, several at a time, and reports those that survive.
func killAll(root string, mutants []mutant, parallel int) error {
	var (
		mu        sync.Mutex
		done      int
		survivors []string
		workers   sync.WaitGroup
		began     = time.Now()
	)
	rows := make(chan mutant, len(mutants))
	for _, m := range mutants {
		rows <- m
	}
	close(rows)
	for range parallel {
		workers.Go(func() {
			for m := range rows {
				began := time.Now()
				err := m.kill(root)
				verdict := "killed"
				mu.Lock()
				if err != nil {
					verdict = "FAILED: " + err.Error()
					survivors = append(survivors, m.name)
				}
				done++
				fmt.Printf("%3d/%d %-44s %5.1fs %s\n", done, len(mutants), m.name, time.Since(began).Seconds(), verdict)
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	fmt.Printf("mutants: %d passed, %d failed, in %.0fs\n", len(mutants)-len(survivors), len(survivors), time.Since(began).Seconds())
	if len(survivors) > 0 {
		slices.Sort(survivors)
		return fmt.Errorf("not killed: %s", strings.Join(survivors, ", "))
	}
	return nil
}

// kill is nil if the mutant compiles and its test fails.
func (m mutant) kill(root string) error {
	source, err := m.mutate(root)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	mutated, overlay := filepath.Join(dir, filepath.Base(m.file)), filepath.Join(dir, "overlay.json")
	table, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, m.file): mutated}})
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(mutated, source, 0o600), os.WriteFile(overlay, table, 0o600)); err != nil {
		return err
	}
	// make lint has vetted the source, and one failure is what the row asks for.
	cmd := exec.Command("go", "test", "-overlay", overlay, "-vet=off", "-failfast", "-count=1", "-timeout=10m", "-run", "^"+m.test+"$", ".")
	cmd.Dir = filepath.Join(root, m.pkg)
	out, err := cmd.CombinedOutput()
	switch {
	case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")):
		return fmt.Errorf("the mutant does not compile:\n%s", out)
	case err == nil && bytes.Contains(out, []byte("[no tests to run]")):
		return fmt.Errorf("%s has no test %s", m.pkg, m.test)
	case err == nil:
		return fmt.Errorf("survived %s", m.test)
	case bytes.Contains(out, []byte("--- FAIL: "+m.test)) || bytes.Contains(out, []byte("panic:")):
		return nil
	}
	return fmt.Errorf("the test did not fail by itself: %w\n%s", err, out)
}
