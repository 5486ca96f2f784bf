//go:build race

package faults_test

// raceDetector slows everything down about tenfold; floods are smaller then.
const raceDetector = true
