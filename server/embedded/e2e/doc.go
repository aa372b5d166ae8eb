// Package e2e holds the end-to-end tests: whole instances of Deputy with real OpenFGA, Redis and
// PostgreSQL servers and with clients of other projects, under load, outages and kill -9.
//
// The tests use Deputy from outside: configuration files, the gRPC and HTTP endpoints, the SDK, the
// command line. A test opens the ledger only where it must read its entries.
package e2e
