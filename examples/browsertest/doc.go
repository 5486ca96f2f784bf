// Package browsertest drives the page of examples/webserver in a real browser.
// It holds tests only; it is a module of its own so that nobody else needs its
// dependencies.
//
// The tests need Debian's chromium, and npm for axe-core, which they install into
// the user's cache directory. Where chromium is missing they are skipped, unless
// REDISTEST=all demands everything.
package browsertest
