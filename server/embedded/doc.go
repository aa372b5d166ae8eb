// Package embedded runs what Deputy depends on inside one process, so that a first try, a demonstration and the end-to-end
// tests need nothing but Go: an OpenFGA server, a Redis, a development issuer.
//
// It is a module of its own because OpenFGA brings 120 further dependencies, which neither users of the SDK nor the
// production binary should inherit. It must not hold any rule of Deputy's: the same code runs here as against servers of
// their own.
package embedded
