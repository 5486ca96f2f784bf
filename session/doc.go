// Package session keeps gorilla sessions in Redis.
package session
