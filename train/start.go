package train

import "time"

// begun is when this process initialised its packages, some hundredths of a second after it began.
var begun = time.Now()

// SinceStart is the time that this process has run.
func SinceStart() time.Duration { return time.Since(begun) }
