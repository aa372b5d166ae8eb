package sim

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets that are at most 3 % wide. Whole numbers only, so that the
// same run gives the same bytes everywhere.
type histogram struct {
	buckets [1024]uint64
	count   uint64
	sum     time.Duration
	max     time.Duration
}

const halves = 5 // 2^5 buckets for each doubling

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0) / 100) // in units of 100 ns
	octave := max(0, bits.Len64(v)-halves-1)
	return min(octave<<halves+int(v>>octave), 1023)
}

// upper is the longest duration that a bucket counts.
func upper(bucket int) time.Duration {
	octave := max(0, bucket>>halves-1)
	return time.Duration(uint64(bucket-octave<<halves+1)<<octave) * 100
}

func (h *histogram) add(d time.Duration, times uint64) {
	h.buckets[bucketOf(d)] += times
	h.count += times
	h.sum += d * time.Duration(times)
	h.max = max(h.max, d)
}

func (h *histogram) mean() time.Duration {
	if h.count == 0 {
		return 0
	}
	return h.sum / time.Duration(h.count)
}

// quantile is the duration that a share of all does not exceed.
func (h *histogram) quantile(share float64) time.Duration {
	wanted := uint64(share * float64(h.count))
	var below uint64
	for i, n := range h.buckets {
		if below += n; n > 0 && below >= wanted {
			return min(upper(i), h.max)
		}
	}
	return h.max
}
