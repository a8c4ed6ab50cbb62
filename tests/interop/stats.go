package main

import "sort"

// median gives the median and the greatest of the values.
func median(values []float64) (float64, float64) {
	if len(values) == 0 {
		return 0, 0
	}
	sort.Float64s(values)
	return values[len(values)/2], values[len(values)-1]
}
