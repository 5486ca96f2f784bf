// Package conventions holds tests of the house rules that a compiler does not
// check, over the source of this module: which package may import which, what a
// Lua script says about itself and takes its keys from, and that what is
// exported is documented. Each rule is also shown to bite.
package conventions
