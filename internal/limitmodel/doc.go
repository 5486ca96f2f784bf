// Package limitmodel is a model of package ratelimit, written from the page of that
// package alone, and a player that compares the two after every step of a random
// history. The tests of ratelimit play a short form, those of module faults a long
// one.
//
// The model keeps every unit that was taken, with the call that took it, in lists
// and in integers of any size. It knows no script, no key and no TTL: what it
// promises must hold whatever Redis clears up. A token bucket is a queue of units,
// first in, first out.
//
// Where the page allows more than one outcome, the model follows all of them and
// drops those that a later reply refutes.
package limitmodel
