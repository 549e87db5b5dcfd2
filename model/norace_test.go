//go:build !race

package model

const schedules = 10_000
