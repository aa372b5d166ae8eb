// Package e2e holds the end-to-end tests: whole instances of Deputy against real OpenFGA, Redis and
// PostgreSQL servers, with clients that nobody here wrote, under load, outages and kill -9.
//
// It knows Deputy from outside: configuration files, the two doors, the SDK, the command line. Only where
// a test must know what the ledger holds does it open the ledger.
package e2e
