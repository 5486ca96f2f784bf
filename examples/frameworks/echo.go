package frameworks

import (
	"net/http"

	"github.com/labstack/echo/v5"

	"github.com/redporch/redporch/middleware"
)

// Echo takes middlewares through echo.WrapMiddleware, best a whole Chain at once.
// What goes around everything belongs around the engine: errors that handlers
// return are answered outside of echo's own middlewares.
func Echo(a *App) http.Handler {
	e := echo.New()
	e.Use(EchoRoute)
	e.GET("/item/:id", func(c *echo.Context) error {
		count(c.Response(), c.Request(), c.Param("id"))
		return nil
	}, echo.WrapMiddleware(a.Sessions()))
	e.GET("/limited", echo.WrapHandler(a.Limit()(http.HandlerFunc(limited))))
	e.GET("/boom", echo.WrapHandler(http.HandlerFunc(boom)))
	return a.Around()(e)
}

// EchoRoute tells the middlewares outside the route.
func EchoRoute(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c *echo.Context) error {
		middleware.SetRoute(c.Request(), c.Path())
		return next(c)
	}
}
