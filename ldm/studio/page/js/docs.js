// The page of the API: Swagger UI, with the header that requests which change something need.
window.SwaggerUIBundle({
  url: "/api/v1/openapi.json",
  dom_id: "#swagger",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  requestInterceptor: (request) => {
    request.headers["X-Studio"] = "docs";
    return request;
  },
});
