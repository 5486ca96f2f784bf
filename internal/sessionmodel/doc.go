// Package sessionmodel is a model of package session, made from its documentation
// alone, and a player of random histories that compares the two after each step.
//
// The model ([Play] and [PlayInTime] use it) knows what every cookie has to open,
// when every session and every user's index ends, which sessions are a user's, what
// each call has to return, and what hooks have to be told. It knows nothing of how
// the package does it: of the layout in Redis it uses what the page says of keys,
// to ask for their TTL.
//
// A history has up to six requests open at a time, over two stores that may be
// configured as two deploys of one app are. Requests load early and save late; they
// set and delete values, append to lists and take from them, bind, regenerate,
// destroy, touch, reload; sessions are revoked, expire and are cleared; Redis is down
// for a call or loses its reply; two calls run at once, of which either may be the
// first. Where the page leaves a choice, the model takes what it sees and holds the
// rest of the history to it.
//
// A history follows from its seed, except which of two calls at once comes first.
// One that fails is shrunk and printed.
//
// What is not played: redisstore's layout, Config.Legacy, replicas, values under a
// key that is a list for one request and not for another.
//
// It is imported by _test.go files only.
package sessionmodel
