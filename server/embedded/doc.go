// Package embedded runs everything that Deputy depends on inside one process: an OpenFGA server and a
// development issuer. One process needs no Redis. So a first try, a demonstration and the end-to-end
// tests need only Go.
//
// It is a module of its own because OpenFGA brings 120 further dependencies, which neither users of
// the SDK nor the production binary should inherit. It must not hold any rule of Deputy: the same
// code runs here and against separate servers.
package embedded
