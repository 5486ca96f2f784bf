// Package gorilla holds one app twice: before, with its sessions in
// rbcervilla/redisstore, and after, with them in redporch. The test shows that
// the two differ in one import and one constructor, and that a session of the
// one lives on in the other, and back.
//
// It is a module of its own, since gorilla/mux is needed nowhere else.
package gorilla
