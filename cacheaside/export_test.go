package cacheaside

import "time"

func init() { defaultTimeout = 10 * time.Second }
