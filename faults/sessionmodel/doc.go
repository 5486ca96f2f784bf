// Package sessionmodel holds no code, only a test: random histories of sessions on
// a real redis-server, and in hours that pass, against the model of package session
// in internal/sessionmodel.
//
//	go test -C faults ./sessionmodel -histories 20000 -timeout 2h
//	go test -C faults ./sessionmodel -seed 4711 -histories 1
package sessionmodel
