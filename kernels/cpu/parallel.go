package cpu

import (
	"sync"
	"sync/atomic"
)

// worker is the memory of one thread.
type worker[E float] struct {
	engine     *engine[E]
	vec        vector[E]
	blas       fortranCall[E]
	expTmp     []E
	stack      []E
	used       int
	wanted     int         // the most that was ever used at once
	candidates []candidate // of Sample
}

func newWorker[E float](e *engine[E]) *worker[E] {
	return &worker[E]{engine: e, vec: e.vec, expTmp: make([]E, expTemps*expBlock)}
}

// take is n elements of scratch memory with undefined content, valid until what mark gave before is released.
func (w *worker[E]) take(n int) []E {
	if w.used == 0 && w.wanted > len(w.stack) {
		w.stack = make([]E, w.wanted)
	}
	from := w.used
	w.used += n
	w.wanted = max(w.wanted, w.used)
	if w.used > len(w.stack) { // the next operation finds it large enough
		return make([]E, n)
	}
	return w.stack[from:w.used:w.used]
}

// mark and release bracket the use of scratch memory: defer w.release(w.mark()).
func (w *worker[E]) mark() int        { return w.used }
func (w *worker[E]) release(mark int) { w.used = mark }

// main is the worker of the goroutine that called the backend.
func (e *engine[E]) main() *worker[E] { return e.workers[0] }

// worthwhile is the elements (or multiplications) that justify waking one more thread, some ten microseconds.
const worthwhile = 1 << 14

// split cuts [0, n) into a contiguous part for each thread, each a multiple of grain but for the last, and runs f
// on them. work is the cost of all, in elements: little work stays on this thread.
func (e *engine[E]) split(n, grain, work int, f func(w *worker[E], from, to int)) {
	parts := min(len(e.workers), (n+grain-1)/grain, 1+work/worthwhile)
	if parts <= 1 {
		if n > 0 {
			f(e.main(), 0, n)
		}
		return
	}
	grains := (n + grain - 1) / grain
	at := func(part int) int { return min(n, grains*part/parts*grain) }
	var wg sync.WaitGroup
	for part := 1; part < parts; part++ {
		wg.Go(func() { f(e.workers[part], at(part), at(part+1)) })
	}
	f(e.main(), 0, at(1))
	wg.Wait()
}

// each runs f on the units 0, …, n-1, whichever thread is free taking the next: for units of unequal size whose
// results do not meet.
func (e *engine[E]) each(n, work int, f func(w *worker[E], unit int)) {
	threads := min(len(e.workers), n, 1+work/worthwhile)
	var next atomic.Int64
	run := func(w *worker[E]) {
		for {
			unit := int(next.Add(1)) - 1
			if unit >= n {
				return
			}
			f(w, unit)
		}
	}
	var wg sync.WaitGroup
	for i := 1; i < threads; i++ {
		wg.Go(func() { run(e.workers[i]) })
	}
	run(e.main())
	wg.Wait()
}
