// Package parallel does work with all CPUs.
package parallel

import (
	"context"
	"runtime"
	"sync"
)

// Do does jobs with all CPUs. worker makes the function of one of them.
// The first error ends all.
func Do[Job any](ctx context.Context, jobs []Job, worker func() func(Job) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan Job)
	var wg sync.WaitGroup
	for range min(runtime.NumCPU(), len(jobs)) {
		wg.Go(func() {
			do := worker()
			for j := range queue {
				if err := do(j); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for _, j := range jobs {
		select {
		case queue <- j:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(queue)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
