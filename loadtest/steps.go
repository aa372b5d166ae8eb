package main

import (
	"context"
	"maps"
	"regexp"
	"strconv"
)

// step is how often a step of an exchange was taken, and how long all of that took, in seconds.
type step struct{ count, sum float64 }

var stepLine = regexp.MustCompile(`(?m)^deputy_exchange_step_seconds_(sum|count)\{step="([a-z]+)"\} (\S+)$`)

func parseSteps(metrics string) map[string]step {
	steps := make(map[string]step)
	for _, m := range stepLine.FindAllStringSubmatch(metrics, -1) {
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			continue
		}
		s := steps[m[2]]
		if m[1] == "sum" {
			s.sum = value
		} else {
			s.count = value
		}
		steps[m[2]] = s
	}
	return steps
}

// steps reads the metrics of the first instance. What cannot be read is left out of the report.
func (s *setup) steps(ctx context.Context) map[string]step {
	text, err := get(ctx, "http://"+s.deputies[0].ops+"/metrics")
	if err != nil {
		return nil
	}
	return parseSteps(string(text))
}

// meanSteps are milliseconds for each step that was taken in between.
func meanSteps(before, after map[string]step) map[string]float64 {
	means := make(map[string]float64)
	for name := range maps.Keys(after) {
		if n := after[name].count - before[name].count; n > 0 {
			means[name] = 1000 * (after[name].sum - before[name].sum) / n
		}
	}
	return means
}
