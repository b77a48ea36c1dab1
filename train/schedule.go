package train

import "math"

// How the learning rate falls after the warmup.
const (
	ScheduleLinear   = "linear"
	ScheduleCosine   = "cosine"
	ScheduleConstant = "constant"
)

// Schedule is the learning rate over a run.
type Schedule struct {
	Peak   float64
	Warmup float64 // W: steps; a share of the steps need not be a whole number
	Decay  string  // ScheduleLinear, ScheduleCosine or ScheduleConstant
}

// LearningRates is the schedule that the config asks for, in a run of total steps.
func (o *OptimConfig) LearningRates(total int) Schedule {
	return Schedule{Peak: o.LR, Warmup: o.WarmupRatio * float64(total), Decay: o.Schedule}
}

// LearningRate is the rate of a step, 0 ≤ step < total = T:
//
//	peak · min(1, (step+1)/W) · decay((step-W)/(T-W))
//
// where decay(p) is 1-p (linear), (1+cos πp)/2 (cosine) or 1 (constant), and 1 for p < 0, during the warmup. A linear
// schedule without the cap is the smaller of two lines; it would pass the peak where W is no whole number.
func (s Schedule) LearningRate(step, total int) float64 {
	rise := 1.0
	if s.Warmup > 0 {
		rise = min(1, float64(step+1)/s.Warmup)
	}
	p := 0.0
	if left := float64(total) - s.Warmup; left > 0 {
		p = min(max((float64(step)-s.Warmup)/left, 0), 1)
	}
	switch s.Decay {
	case ScheduleLinear:
		return s.Peak * rise * (1 - p)
	case ScheduleCosine:
		return s.Peak * rise * (1 + math.Cos(math.Pi*p)) / 2
	case ScheduleConstant:
		return s.Peak * rise
	}
	panic("train: unknown schedule " + s.Decay)
}
