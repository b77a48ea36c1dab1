//go:build !gpu

package testgpu

var cards []Backend
