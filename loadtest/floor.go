package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// flooring is the hidden command that is the floor: an HTTP server of the standard library that
// verifies one ES256 token and signs another for each request, and does nothing else. What it costs
// is the unit of all ratios, because every token service pays at least that.
type flooring struct{}

// Run prints its address and a token that it accepts, and serves until it is interrupted.
func (flooring) Run(ctx context.Context, stdout io.Writer) error {
	key, err := newSigner()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	token, err := key.sign("at+jwt", floorClaims(time.Now()))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: floor{key}, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	fmt.Fprintln(stdout, listener.Addr(), token)
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// floorClaims are as many as a derived token of depth three has.
func floorClaims(now time.Time) map[string]any {
	return map[string]any{
		"iss": "https://deputy.example", "sub": "user:u0", "client_id": "agent:c3", "aud": audiences, "scope": strings.Join(scopes, " "),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": "01K0000000000000000000000A", "txn": "01K0000000000000000000000B",
		"act": map[string]any{"sub": "agent:c3", "act": map[string]any{"sub": "agent:c2", "act": map[string]any{"sub": "agent:c1"}}},
	}
}

type floor struct{ key *signer }

func (f floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	claims, err := verifyES256(&f.key.key.PublicKey, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	expiry, _ := claims["exp"].(float64)
	if now := time.Now().Unix(); int64(expiry) <= now {
		http.Error(w, "expired", http.StatusUnauthorized)
		return
	}
	claims["iat"] = time.Now().Unix()
	token, err := f.key.sign("at+jwt", claims)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, token) // the client has gone
}

// floorProcess is the floor in a process of its own.
type floorProcess struct {
	*process
	address, token string
	client         *http.Client
}

// startFloor starts this program again, as the floor.
func startFloor(dir string) (*floorProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(self, "floor")
	cmd.Stdout = in
	p, err := start("floor", dir, cmd)
	in.Close()
	if err != nil {
		return nil, err
	}
	var f floorProcess
	if _, err := fmt.Fscan(out, &f.address, &f.token); err != nil {
		return nil, errors.Join(fmt.Errorf("floor: %w", err), p.stop())
	}
	f.process = p
	f.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1024}, Timeout: time.Minute}
	return &f, nil
}

// request is one exchange of a token for another at the floor.
func (f *floorProcess) request(ctx context.Context, _ int) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+f.address, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+f.token)
	response, err := f.client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || bytes.Count(body, []byte(".")) != 2) {
		err = fmt.Errorf("floor: %s: %s", response.Status, body)
	}
	return granted, err
}
