//go:build race

package model

// schedules are fewer under the race detector, which has little to find here: a schedule has one worker at a time.
const schedules = 500
