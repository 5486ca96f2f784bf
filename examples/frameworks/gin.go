package frameworks

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/redporch/redporch/middleware"
)

// Gin has a writer and a context of its own. What goes around everything is
// simplest around the engine; for a group or a route there is ginUse.
func Gin(a *App) http.Handler {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.Use(GinRoute)
	e.Group("/item", ginUse(a.Sessions())).GET("/:id", func(c *gin.Context) { count(c.Writer, c.Request, c.Param("id")) })
	e.GET("/limited", ginUse(a.Limit()), gin.WrapF(limited))
	e.GET("/boom", gin.WrapF(boom))
	return a.Around()(e)
}

// GinRoute tells the middlewares outside the route.
func GinRoute(c *gin.Context) { middleware.SetRoute(c.Request, c.FullPath()) }

// ginUse makes a gin middleware of one for net/http.
func ginUse(mw middleware.Middleware) gin.HandlerFunc {
	return func(c *gin.Context) {
		outer, called := c.Writer, false
		mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			called = true
			c.Request = r
			c.Writer = &ginWriter{ResponseWriter: outer, w: w}
			c.Next()
			c.Writer.WriteHeaderNow()
		})).ServeHTTP(outer, c.Request)
		c.Writer = outer
		if !called {
			c.Abort()
		}
	}
}

// ginWriter sends what gin writes through a middleware's writer, and leaves
// gin's own bookkeeping to gin's.
type ginWriter struct {
	gin.ResponseWriter
	w http.ResponseWriter
}

func (g *ginWriter) WriteHeader(code int)              { g.ResponseWriter.WriteHeader(code) }
func (g *ginWriter) WriteHeaderNow()                   { g.begin() }
func (g *ginWriter) Write(b []byte) (int, error)       { g.begin(); return g.w.Write(b) }
func (g *ginWriter) WriteString(s string) (int, error) { return g.Write([]byte(s)) }
func (g *ginWriter) Flush()                            { _ = g.FlushError() }
func (g *ginWriter) FlushError() error                 { g.begin(); return http.NewResponseController(g.w).Flush() }
func (g *ginWriter) Unwrap() http.ResponseWriter       { return g.w }
func (g *ginWriter) begin() {
	if !g.Written() {
		g.w.WriteHeader(g.Status()) // gin only notes a status until somebody writes
	}
}
