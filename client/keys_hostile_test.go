package client

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"deputy.example/deputy/client/internal/deputytest"
)

// overPipe is Go's own HTTP client with answer at the other end of each connection. answer may send
// anything. The time is that of the synctest bubble.
func overPipe(answer func(io.Writer) error) http.RoundTripper {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				defer there.Close()
				if _, err := http.ReadRequest(bufio.NewReader(there)); err == nil {
					_ = answer(there) // it ends when the reader is gone
				}
			}()
			return here, nil
		},
	}
}

func bubbleVerifier(t *testing.T, s *deputytest.Server, transport http.RoundTripper) *Verifier {
	t.Helper()
	v, err := NewVerifier(VerifierConfig{
		Issuer: s.Issuer, Audience: calendar, JWKSURL: "http://127.0.0.1/jwks", HTTPTransport: transport, IgnoreRevocations: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Whatever the server of the keys sends costs three seconds at most, and admits no token.
func TestHostileKeys(t *testing.T) {
	s := startDeputy(t)
	set := string(s.JWKS())
	var bomb bytes.Buffer
	packer := gzip.NewWriter(&bomb)
	for range 64 {
		if _, err := packer.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := packer.Close(); err != nil {
		t.Fatal(err)
	}
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/jwk-set+json\r\n"
	endless := func(w io.Writer, first, text string) error {
		_, err := io.WriteString(w, first)
		for err == nil {
			_, err = io.WriteString(w, text)
		}
		return err
	}
	// drip sends the text byte by byte, in the time of the test's bubble.
	drip := func(w io.Writer, text string, every time.Duration) error {
		for n := range len(text) {
			time.Sleep(every)
			if _, err := io.WriteString(w, text[n:n+1]); err != nil {
				return err
			}
		}
		return nil
	}
	for _, row := range []struct {
		name   string
		answer func(io.Writer) error
		cause  string // "" means accepted
		takes  time.Duration
	}{
		{"keys", func(w io.Writer) error { _, err := io.WriteString(w, head+"\r\n"+set); return err }, "", 0},
		{"keys byte by byte, in time", func(w io.Writer) error { return drip(w, head+"\r\n"+set, time.Millisecond) }, "", time.Duration(len(head)+2+len(set)) * time.Millisecond},
		{"keys byte by byte", func(w io.Writer) error { return drip(w, head+"\r\n"+set, 100*time.Millisecond) }, "deadline exceeded", fetchTimeout},
		{"nothing at all", func(io.Writer) error { time.Sleep(time.Minute); return nil }, "deadline exceeded", fetchTimeout},
		{"5 MB", func(w io.Writer) error {
			_, err := io.WriteString(w, head+"\r\n"+set+strings.Repeat(" ", 5<<20))
			return err
		}, "more than", 0},
		{"chunks without end", func(w io.Writer) error {
			return endless(w, head+"Transfer-Encoding: chunked\r\n\r\n", "3e8\r\n"+strings.Repeat(" ", 1000)+"\r\n")
		}, "more than", 0},
		{"headers without end", func(w io.Writer) error { return endless(w, head, "X: "+strings.Repeat("x", 10_000)+"\r\n") }, "exceeded", 0},
		{"a bomb", func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", head, bomb.Len(), bomb.Bytes())
			return err
		}, "more than", 0},
		{"HTML", func(w io.Writer) error {
			_, err := io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>"+set+"</html>")
			return err
		}, "not a JWK Set", 0},
		{"10,000 keys", func(w io.Writer) error {
			_, err := io.WriteString(w, head+"\r\n"+`{"keys":[{}`+strings.Repeat(",{}", 9_999)+`]}`)
			return err
		}, "more than 100 keys", 0},
		{"a redirect", func(w io.Writer) error {
			_, err := io.WriteString(w, "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1/elsewhere\r\nContent-Length: 0\r\n\r\n")
			return err
		}, "307", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := bubbleVerifier(t, s, overPipe(row.answer))
				defer time.Sleep(time.Hour) // until the other end has detected it
				began := time.Now()
				_, err := v.Verify(t.Context(), s.Token(s.Claims(began)))
				if took := time.Since(began); took != row.takes {
					t.Errorf("it takes %v, want %v", took, row.takes)
				}
				if row.cause == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if code, _ := accessCode(t, err); code != AccessUnavailable {
					t.Errorf("err = %v", err)
				}
				if _, err := v.keys.download(t.Context()); err == nil || !strings.Contains(err.Error(), row.cause) {
					t.Errorf("the cause is %v, want %q", err, row.cause)
				}
			})
		})
	}
}

// Many tokens with unknown kids share one fetch and leave nothing behind, and a valid one among
// them is accepted.
func TestManyStrangersShareOneFetch(t *testing.T) {
	s, next := startDeputy(t), startDeputy(t)
	synctest.Test(t, func(t *testing.T) {
		old, both := string(s.JWKS()), strings.TrimSuffix(string(s.JWKS()), "]}")+","+strings.TrimPrefix(strings.Replace(string(next.JWKS()), "test-1", "test-2", 1), `{"keys":[`)
		var set atomic.Pointer[string]
		set.Store(&old)
		var fetches atomic.Int64
		v := bubbleVerifier(t, s, overPipe(func(w io.Writer) error {
			fetches.Add(1)
			time.Sleep(time.Second)
			_, err := io.WriteString(w, "HTTP/1.1 200 OK\r\n\r\n"+*set.Load())
			return err
		}))
		good := s.Token(s.Claims(time.Now()))
		if _, err := v.Verify(t.Context(), good); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := runtime.NumGoroutine()
		set.Store(&both)
		header := deputytest.Header()
		header["kid"] = "test-2"
		fresh := next.Sign(header, s.Claims(time.Now()))
		var refused, found atomic.Int64
		var callers sync.WaitGroup
		for n := range 10_000 {
			token := fresh
			if n%10 != 0 {
				header["kid"] = fmt.Sprint("made-up-", n)
				token = s.Sign(header, s.Claims(time.Now()))
			}
			callers.Go(func() {
				if _, err := v.Verify(t.Context(), token); err != nil {
					refused.Add(1)
				} else {
					found.Add(1)
				}
			})
		}
		callers.Wait()
		synctest.Wait()
		if fetches.Load() != 2 || refused.Load() != 9_000 || found.Load() != 1_000 {
			t.Errorf("%d fetches, %d refused, %d of a new key found", fetches.Load(), refused.Load(), found.Load())
		}
		// The number of goroutines of the process varies by a few.
		if after := runtime.NumGoroutine(); after > before+10 {
			t.Errorf("%d goroutines are left behind", after-before)
		}
		if held := len(v.keys.held.Load().keys); held != 2 {
			t.Errorf("%d keys are held", held)
		}
	})
}
